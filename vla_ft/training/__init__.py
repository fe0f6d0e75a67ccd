"""The one trainer: engines, optimizers, checkpoints, tracking and fault handling for every policy."""

import logging

# bitsandbytes, which peft brings along, says on some CPUs at import that a package for 4-bit layers is missing and must
# be installed. Nothing here has such layers. Set here because it must be there before either is imported.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda one: "kernels-community" not in one.getMessage())
