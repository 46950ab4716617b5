"""Python imports this module at its start, in every process whose PYTHONPATH has this folder."""

import pretend_cuda

pretend_cuda.install()
