//! Compiles the C++ shim against libtorch, and the CPU kernels once for each instruction set. The root crate's build script
//! explains a missing libtorch.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(env::var("LIBTORCH").unwrap_or_default());
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64");
    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).pic(true).warnings(false).debug(false).std("c++17").flag_if_supported("-Wno-psabi");
        if x86 {
            build.define("MT_X86", None);
        }
        build
    };
    let mut sets: Vec<(&str, &[&str])> = vec![("generic", &[])];
    if x86 {
        sets.push(("avx2", &["-mavx2", "-mfma"]));
        sets.push(("avx512", &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]));
    }
    build()
        .opt_level(2)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .files(["cpp/shim.cpp", "cpp/checkpoint.cpp", "cpp/ops.cpp", "cpp/group.cpp"])
        .compile("medtune_shim");
    for (name, flags) in sets {
        let mut kernels = build();
        kernels.opt_level(3).define("MT_ISA", name).file("cpp/kernels.cpp");
        for flag in flags {
            kernels.flag(flag);
        }
        kernels.compile(&format!("medtune_kernels_{name}"));
    }
}
