// Found only where libtorch's own headers are not: .cargo/config.toml names this folder as the last place to look.
#error "libtorch is not set up: run scripts/setup once, or set LIBTORCH, or build with --no-default-features"
// a missing header ends the compilation here, without the thousand errors that follow from this one
#include "libtorch-is-not-set-up"
