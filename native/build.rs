//! Compiles the C++ shim against libtorch. The root crate's build script explains a missing libtorch.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(env::var("LIBTORCH").unwrap_or_default());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .opt_level(2)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .file("cpp/shim.cpp")
        .compile("medtune_shim");
}
