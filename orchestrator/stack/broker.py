"""ActiveMQ with STOMP, in plain and over TLS, for one user; persistent, without a web console."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from xml.sax.saxutils import quoteattr

from orchestrator.errors import StackError
from orchestrator.stack import processes
from orchestrator.stack.daemon import BrokerAddress, Daemon
from orchestrator.stack.databases import USER
from orchestrator.stack.layout import Layout, make_private, write_private
from orchestrator.stack.ports import LOOPBACK
from orchestrator.stack.programs import find_program

PROGRAMS = ("java", "openssl")
LIBRARIES = Path("/usr/share/activemq/lib")

# Written for ActiveMQ 5.17; each queue has a dead-letter queue of its own, DLQ.<queue>.
CONFIGURATION = """\
<beans xmlns="http://www.springframework.org/schema/beans"
       xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
       xsi:schemaLocation="http://www.springframework.org/schema/beans
                           http://www.springframework.org/schema/beans/spring-beans.xsd
                           http://activemq.apache.org/schema/core
                           http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" brokerName="orchestrator" useJmx="false"
          dataDirectory={data}>
    <destinationPolicy><policyMap><policyEntries>
      <policyEntry queue=">">
        <deadLetterStrategy>
          <individualDeadLetterStrategy queuePrefix="DLQ." useQueueForQueueMessages="true"/>
        </deadLetterStrategy>
      </policyEntry>
    </policyEntries></policyMap></destinationPolicy>
    <persistenceAdapter><kahaDB directory={store} journalMaxFileLength="16mb"/></persistenceAdapter>
    <plugins>
      <simpleAuthenticationPlugin anonymousAccessAllowed="false"><users>
        <authenticationUser username={user} password={password} groups="users"/>
      </users></simpleAuthenticationPlugin>
    </plugins>
    <sslContext><sslContext keyStore={keystore} keyStoreType="PKCS12" keyStorePassword={password}/></sslContext>
    <systemUsage><systemUsage>
      <memoryUsage><memoryUsage limit="64 mb"/></memoryUsage>
      <storeUsage><storeUsage limit="1 gb"/></storeUsage>
      <tempUsage><tempUsage limit="100 mb"/></tempUsage>
    </systemUsage></systemUsage>
    <transportConnectors>
      <transportConnector name="stomp" uri={plain}/>
      <transportConnector name="stomp+ssl" uri={tls}/>
    </transportConnectors>
  </broker>
</beans>
"""

LOGGING = """\
log4j.rootLogger=INFO, console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d %p %m [%c{1}]%n
"""


def address(layout: Layout) -> BrokerAddress:
    """Return where the broker listens, and who is let in."""
    folder = _folder(layout)
    return BrokerAddress(
        host=LOOPBACK,
        port=layout.ports["broker"],
        tls_port=layout.ports["broker-tls"],
        user=USER,
        password=layout.password,
        credentials=folder / "credentials.toml",
        certificate=folder / "certificate.pem",
    )


def require_libraries() -> None:
    """Raise `StackError` where ActiveMQ isn't installed."""
    if not LIBRARIES.is_dir():
        raise StackError(f"ActiveMQ is missing ({LIBRARIES})", remedy="install it: apt-get install activemq")


def _folder(layout: Layout) -> Path:
    return layout.directory / "broker"


def prepare(layout: Layout) -> None:
    """Write the broker's configuration, the credentials of its user and a self-signed certificate."""
    folder = make_private(_folder(layout))
    here = address(layout)
    _make_certificate(here.certificate, folder / "keystore.p12", layout.password)
    values = {
        "data": str(folder),
        "store": str(folder / "kahadb"),
        "user": here.user,
        "password": here.password,
        "keystore": (folder / "keystore.p12").as_uri(),
        "plain": f"stomp://{LOOPBACK}:{here.port}",
        "tls": f"stomp+ssl://{LOOPBACK}:{here.tls_port}",
    }
    attributes = {name: quoteattr(value) for name, value in values.items()}
    write_private(folder / "activemq.xml", CONFIGURATION.format(**attributes))
    write_private(folder / "log4j.properties", LOGGING)
    write_private(here.credentials, f'username = "{here.user}"\npassword = "{here.password}"\n')


def _make_certificate(certificate: Path, keystore: Path, password: str) -> None:
    """Make a key pair for 127.0.0.1, once; the keystore is the form that Java reads."""
    key = keystore.with_name("key.pem")
    openssl = find_program("openssl")
    if not certificate.exists():
        names = ["-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{LOOPBACK},DNS:localhost"]
        request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", *names]
        processes.run([openssl, *request, "-keyout", str(key), "-out", str(certificate)])
    # The password on standard input: command lines can be read by everybody.
    export = [
        "pkcs12",
        "-export",
        "-inkey",
        str(key),
        "-in",
        str(certificate),
        "-out",
        str(keystore),
        "-passout",
        "stdin",
    ]
    processes.run([openssl, *export], text=password)


def daemon(layout: Layout) -> Daemon:
    """Return the description of the broker."""
    folder = _folder(layout)
    here = address(layout)
    return Daemon(
        name="broker",
        command=(
            find_program("java"),
            "-Xms64m",
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={folder}",
            f"-Dlog4j.configuration={(folder / 'log4j.properties').as_uri()}",
            f"-Dactivemq.data={folder}",
            "-cp",
            os.pathsep.join(f"{path}/*" for path in (LIBRARIES, LIBRARIES / "optional")),
            "org.apache.activemq.console.Main",
            "start",
            f"xbean:{(folder / 'activemq.xml').as_uri()}",
        ),
        log=layout.log("broker"),
        environment=dict(os.environ),
        ready=lambda: lets_in(here),
        port=here.port,
    )


def lets_in(broker: BrokerAddress, *, timeout_s: float = 2) -> bool:
    """Return whether the broker answers a STOMP 1.2 CONNECT of its user with CONNECTED."""
    headers = f"accept-version:1.2\nhost:{broker.host}\nlogin:{broker.user}\npasscode:{broker.password}"
    try:
        with socket.create_connection((broker.host, broker.port), timeout=timeout_s) as connection:
            connection.sendall(f"CONNECT\n{headers}\n\n\0".encode())
            return connection.recv(4096).startswith(b"CONNECTED\n")
    except OSError:
        return False
