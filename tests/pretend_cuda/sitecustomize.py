"""Python reads this at its start, in every process whose PYTHONPATH holds this folder."""

import pretend_cuda

pretend_cuda.install()
