"""What to cite, by key."""

from __future__ import annotations

REFERENCES = {
    "nexus": "Könnecke, M. et al. (2015). The NeXus data format. J. Appl. Cryst. 48, 301–305. "
    "https://doi.org/10.1107/S1600576714027575",
    "hdf5": "Folk, M., Heber, G., Koziol, Q., Pourmal, E. & Robinson, D. (2011). An overview of the HDF5 technology "
    "suite and its applications. Proc. EDBT/ICDT 2011 Workshop on Array Databases, 36–47. "
    "https://doi.org/10.1145/1966895.1966900",
    "h5py": "Collette, A. (2013). Python and HDF5. O'Reilly. ISBN 978-1-4493-6783-1.",
    "numpy": "Harris, C. R. et al. (2020). Array programming with NumPy. Nature 585, 357–362. "
    "https://doi.org/10.1038/s41586-020-2649-2",
    "mpi4py": "Dalcin, L. & Fang, Y.-L. L. (2021). mpi4py: status update after 12 years of development. "
    "Comput. Sci. Eng. 23(4), 47–54. https://doi.org/10.1109/MCSE.2021.3083216",
    "openmpi": "Gabriel, E. et al. (2004). Open MPI: goals, concept, and design of a next generation MPI "
    "implementation. Recent Advances in Parallel Virtual Machine and Message Passing Interface, LNCS 3241, 97–104. "
    "https://doi.org/10.1007/978-3-540-30218-6_19",
    "slurm": "Yoo, A. B., Jette, M. A. & Grondona, M. (2003). SLURM: simple Linux utility for resource management. "
    "Job Scheduling Strategies for Parallel Processing, LNCS 2862, 44–60. https://doi.org/10.1007/10968987_3",
    "bitshuffle": "Masui, K. et al. (2015). A compression scheme for radio data in high performance computing. "
    "Astron. Comput. 12, 181–190. https://doi.org/10.1016/j.ascom.2015.07.002",
    "pyfai": "Ashiotis, G. et al. (2015). The fast azimuthal integration Python library: pyFAI. J. Appl. Cryst. 48, "
    "510–519. https://doi.org/10.1107/S1600576715004306",
    "solid angle": "Bösecke, P. & Diat, O. (1997). Small-angle X-ray scattering at the ESRF high-brilliance beamline. "
    "J. Appl. Cryst. 30, 867–871. https://doi.org/10.1107/S0021889897001647",
    "polarisation": "Kahn, R. et al. (1982). Macromolecular crystallography with synchrotron radiation: photographic "
    "data collection and polarization correction. J. Appl. Cryst. 15, 330–337. "
    "https://doi.org/10.1107/S0021889882012060",
    "sensor": "Wu, G., Rodrigues, B. L. & Coppens, P. (2002). The correction of reflection intensities for incomplete "
    "absorption of high-energy X-rays in the CCD phosphor. J. Appl. Cryst. 35, 356–359.",
    "corrections": "Pauw, B. R., Smith, A. J., Snow, T., Terrill, N. J. & Thünemann, A. F. (2017). The modular "
    "small-angle X-ray scattering data correction sequence. J. Appl. Cryst. 50, 1800–1811. "
    "https://doi.org/10.1107/S1600576717015096",
    "anscombe": "Anscombe, F. J. (1948). The transformation of Poisson, binomial and negative-binomial data. "
    "Biometrika 35, 246–254. https://doi.org/10.1093/biomet/35.3-4.246",
}


class Citations:
    """Numbers references in the order in which a text cites them."""

    def __init__(self) -> None:
        self._keys: list[str] = []

    def __call__(self, key: str) -> str:
        """Return the mark that cites `key` in a text."""
        if key not in self._keys:
            self._keys.append(key)
        return f"[{self._keys.index(key) + 1}]"

    def listed(self) -> list[str]:
        """Return the references that were cited, numbered."""
        return [f"{number}. {REFERENCES[key]}" for number, key in enumerate(self._keys, start=1)]
