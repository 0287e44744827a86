//! The Python module of a package, compiled into this program.

use sha2::{Digest, Sha256};

use super::manifest::hex;

/// File name and content, sorted by name.
pub(super) const FILES: [(&str, &str); 5] = [
    ("__init__.py", include_str!("runtime/__init__.py")),
    ("images.py", include_str!("runtime/images.py")),
    ("modeling.py", include_str!("runtime/modeling.py")),
    ("onednn.py", include_str!("runtime/onednn.py")),
    ("weights.py", include_str!("runtime/weights.py")),
];

/// The module's name. Python keeps one module a name and process, so other code must have another name.
pub(super) fn module_name() -> String {
    let mut hash = Sha256::new();
    for (name, text) in FILES {
        // lengths keep different files from having the same concatenation
        hash.update(format!("{name}\n{}\n", text.len()));
        hash.update(text);
    }
    format!("medtune_rt_{}", &hex(&hash.finalize())[..12])
}
