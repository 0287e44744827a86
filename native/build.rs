//! Compiles the C++ shim against libtorch, the CPU kernels once for each instruction set, and NCCL's half as a library of its
//! own where CUDA's headers are. The root crate's build script explains a missing libtorch.

use std::env;
use std::path::{Path, PathBuf};

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
        .files([
            "cpp/shim.cpp",
            "cpp/checkpoint.cpp",
            "cpp/ops.cpp",
            "cpp/inference.cpp",
            "cpp/group.cpp",
            "cpp/gpu.cpp",
        ])
        .compile("medtune_shim");
    for (name, flags) in sets {
        let mut kernels = build();
        kernels.opt_level(3).define("MT_ISA", name).file("cpp/kernels.cpp");
        for flag in flags {
            kernels.flag(flag);
        }
        kernels.compile(&format!("medtune_kernels_{name}"));
    }
    nccl(&libtorch, build());
}

/// Makes the library that the program loads where there is a GPU, or says that there is none: a libtorch for CPUs, or no headers.
fn nccl(libtorch: &Path, mut build: cc::Build) {
    println!("cargo:rustc-check-cfg=cfg(has_nccl)");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    // the packages that pip puts beside libtorch, else an installed CUDA
    let packages = libtorch.join("..").join("nvidia");
    let mut includes = vec![packages.join("cu13/include"), packages.join("nccl/include")];
    includes.extend(env::var("CUDA_HOME").ok().map(|home| Path::new(&home).join("include")));
    includes.retain(|folder| folder.is_dir());
    let needed = ["cuda_runtime.h", "crt/host_config.h", "cublas_v2.h", "cusparse.h", "nccl.h"];
    let missing = needed.iter().find(|name| !includes.iter().any(|folder| folder.join(name).exists()));
    if !libtorch.join("lib/libtorch_cuda.so").exists() {
        return;
    }
    println!("cargo:rerun-if-changed={}", packages.join("cu13/include/crt/host_config.h").display());
    if let Some(name) = missing {
        println!(
            "cargo:warning=built without NCCL, so several GPUs cannot train together: there is no {name} (see CUDA_HOME)"
        );
        return;
    }
    for folder in [libtorch.join("include"), libtorch.join("include/torch/csrc/api/include")].iter().chain(&includes) {
        build.include(folder);
    }
    let library = PathBuf::from(env::var("OUT_DIR").unwrap_or_default()).join("libmedtune_nccl.so");
    let mut compiler = build.opt_level(2).flag_if_supported("-Wno-interference-size").get_compiler().to_command();
    compiler.args(["-shared", "cpp/nccl.cpp", "-o"]).arg(&library);
    match compiler.status() {
        Ok(status) if status.success() => println!("cargo:rustc-cfg=has_nccl"),
        failed => panic!("cannot compile cpp/nccl.cpp: {failed:?}"),
    }
}
