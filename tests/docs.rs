//! The documentation says what the code does: the table of exit codes, and links that lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use medtune::ErrorKind;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and every page in docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    for entry in fs::read_dir(root().join("docs")).expect("docs/ is there") {
        let path = entry.expect("docs/ can be listed").path();
        if path.extension().is_some_and(|e| e == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    pages
}

/// The cells of a Markdown table's line, without the outer bars.
fn cells(line: &str) -> Vec<String> {
    line.trim().trim_matches('|').split('|').map(|c| c.trim().trim_matches('`').to_owned()).collect()
}

#[test]
fn exit_code_table_equals_the_error_kinds() {
    let text = fs::read_to_string(root().join("docs/exit-codes.md")).expect("docs/exit-codes.md is there");
    let documented: Vec<(String, String, String)> = text
        .lines()
        .map(cells)
        .filter(|c| c.len() == 4 && c[0].parse::<u8>().is_ok() && c[1] != "success")
        .map(|c| (c[0].clone(), c[1].clone(), c[2].clone()))
        .collect();
    let actual: Vec<(String, String, String)> = ErrorKind::ALL
        .iter()
        .map(|k| {
            let retry = if k.retryable() { "yes" } else { "no" };
            (k.exit_code().to_string(), k.name().to_owned(), retry.to_owned())
        })
        .collect();
    assert_eq!(documented, actual, "docs/exit-codes.md (left) and ErrorKind::ALL (right) differ");
}

#[test]
fn relative_links_lead_to_files() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page can be read");
        let folder = page.parent().unwrap_or(Path::new("."));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !target.contains("://") && !folder.join(file).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to files that do not exist: {broken:#?}");
}
