// What the processor is good at.
#pragma once
#include <ATen/ATen.h>

// Whether products of matrices of this type go through oneDNN here, and not through what libtorch takes by itself.
bool prefers_onednn(at::ScalarType type);
