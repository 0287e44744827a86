//! The modules use one another in one direction: each only those before it in the map of the crate's documentation.

use std::fs;
use std::path::{Path, PathBuf};

/// The order of the map in src/lib.rs; what follows `evaluation` and `package` needs libtorch, but for the command line.
const ORDER: [&str; 17] = [
    "error",
    "panics",
    "telemetry",
    "config",
    "storage",
    "registry",
    "mlflow",
    "imaging",
    "data",
    "evaluation",
    "package",
    "distributed",
    "model",
    "infer",
    "train",
    "jobs",
    "cli",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn place(module: &str) -> Option<usize> {
    ORDER.iter().position(|m| *m == module)
}

#[test]
fn modules_use_only_those_before_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut edges = 0;
    for path in sources(&root) {
        let relative = path.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let Some(user) = place(first.trim_end_matches(".rs")) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().map(str::trim_start).filter(|l| !l.starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let name: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let Some(used) = place(&name) else { continue };
                edges += 1;
                if used > user {
                    wrong.push(format!("{}: uses {name}", relative.display()));
                }
            }
        }
    }
    assert!(edges > 100, "only {edges} uses found: the search is broken");
    assert!(wrong.is_empty(), "modules must not use those after them:\n{}", wrong.join("\n"));
}

#[test]
fn the_map_shows_the_modules_in_this_order() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let map: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("//! | "))
        .filter_map(|row| row.split('`').nth(1))
        .filter(|name| place(name).is_some())
        .collect();
    assert_eq!(map, ORDER);
}
