//! Checks that libtorch is where the build expects it, embeds the run-time search path, and stamps the binary with a hash
//! of the sources, so that a run record says which code made it. Where libtorch is missing altogether, the C++ compiler says so first:
//! see native/without-libtorch.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The libtorch release that tch 0.24 is made for.
const TORCH_VERSION: &str = "2.11";

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-env=MEDTUNE_CODE_VERSION={}", code_version(&root));
    if env::var_os("CARGO_FEATURE_TORCH").is_some() {
        link_libtorch();
    }
}

fn link_libtorch() {
    let libtorch = PathBuf::from(env::var("LIBTORCH").unwrap_or_default());
    let library = libtorch.join("lib");
    if !library.join("libtorch_cpu.so").exists() {
        fail(&format!(
            "libtorch is not at '{}'. Run `scripts/setup` once (it installs libtorch and links it into this checkout), \
             or set LIBTORCH to an unpacked libtorch {TORCH_VERSION}, or build without it: --no-default-features",
            libtorch.display()
        ));
    }
    let version = fs::read_to_string(libtorch.join("version.py"))
        .or_else(|_| fs::read_to_string(libtorch.join("build-version")))
        .unwrap_or_default();
    if !version.contains(&format!("{TORCH_VERSION}.")) {
        fail(&format!(
            "libtorch at '{}' is not version {TORCH_VERSION}: {}",
            libtorch.display(),
            version.lines().find(|l| l.contains("version")).unwrap_or("no version found")
        ));
    }
    // `__version__ = '2.11.0+cpu'`, or the number alone
    let number = version.find(&format!("{TORCH_VERSION}.")).map_or("", |at| &version[at..]);
    let number = number.split(|c: char| c.is_whitespace() || "'\"".contains(c)).next().unwrap_or_default();
    println!("cargo:rustc-env=MEDTUNE_LIBTORCH_VERSION={number}");
    let library = fs::canonicalize(&library).expect("the folder exists");
    println!("cargo:rerun-if-changed={}", library.join("libtorch_cpu.so").display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());
    // the CUDA libraries beside libtorch are loaded at run time, when a job asks for a GPU
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("{message}");
    std::process::exit(1)
}

/// FNV-1a over every source file's path and bytes: changes exactly when the code does.
fn code_version(root: &Path) -> String {
    let mut files = Vec::new();
    for folder in ["src", "native"] {
        println!("cargo:rerun-if-changed={folder}");
        collect(&root.join(folder), &mut files);
    }
    files.extend(["Cargo.lock", "Cargo.toml"].map(|name| root.join(name)));
    files.sort();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
        let bytes = fs::read(file).unwrap_or_default();
        for byte in name.bytes().chain(bytes) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "__pycache__") {
                collect(&path, files);
            }
        } else {
            files.push(path);
        }
    }
}
