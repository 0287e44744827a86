// Found only where libtorch's own headers are not; see torch/torch.h beside this folder.
#include "../torch/torch.h"
