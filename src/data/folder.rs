//! A folder per class, image files inside.
//!
//! Guarantees: the result depends on names only, not on the order in which the file system lists them; nothing outside
//! the root is ever read, whatever links point to.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file extensions that count as images, in any case.
pub const EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp"];

/// One image of a class folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Name of the class folder.
    pub folder: String,
    /// Where the file is.
    pub path: PathBuf,
    /// `folder/file`: the row's key in the TSVs.
    pub key: String,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderScan {
    /// The images, sorted by folder name, then by file name.
    pub images: Vec<ImageFile>,
    /// The class folders, sorted; each has an image.
    pub folders: Vec<String>,
    /// Entries that are neither a class folder nor an image in one (hidden entries are not counted).
    pub ignored: usize,
}

/// Finds the images of every class folder directly under `root`. Hidden entries are passed over; files beside the class
/// folders, other files and deeper folders are ignored but counted.
///
/// # Errors
/// `NotFound` or `Storage` when a folder cannot be read; `Data`: no class folder, a class folder without an image, a name
/// that cannot be a key, a link that leaves `root` or leads nowhere.
pub fn scan(root: impl AsRef<Path>) -> Result<FolderScan> {
    let root = root.as_ref();
    let real_root = fs::canonicalize(root).map_err(|e| Error::io("open folder", root, e))?;
    let mut found = FolderScan { images: Vec::new(), folders: Vec::new(), ignored: 0 };
    for (folder, path) in entries(root, &real_root)? {
        if !path.is_dir() {
            found.ignored += 1;
            continue;
        }
        let before = found.images.len();
        for (file, path) in entries(&path, &real_root)? {
            if !path.is_file() || !is_image(&path) {
                found.ignored += 1;
                continue;
            }
            let key = format!("{folder}/{file}");
            found.images.push(ImageFile { folder: folder.clone(), path, key });
        }
        if found.images.len() == before {
            return Err(Error::data(format!(
                "class folder '{}' has no image ({}): add images or remove the folder",
                path.display(),
                EXTENSIONS.join(", ")
            )));
        }
        found.folders.push(folder);
    }
    if found.folders.is_empty() {
        return Err(Error::data(format!(
            "'{}' has no class folder: put the images of each class into a folder of their own",
            root.display()
        )));
    }
    Ok(found)
}

/// The images of a folder and of the folders in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Their paths below it, with `/` between folders, sorted.
    pub images: Vec<String>,
    /// Files that are no images, and links to folders (hidden entries are not counted).
    pub ignored: usize,
}

/// Finds all images below `root`. Hidden entries are passed over; links to folders are not followed.
///
/// # Errors
/// `NotFound` or `Storage` when a folder cannot be read; `Data`: a name that cannot be a key, a link that leaves `root` or leads
/// nowhere.
pub fn tree(root: impl AsRef<Path>) -> Result<Tree> {
    let root = root.as_ref();
    let real_root = fs::canonicalize(root).map_err(|e| Error::io("open folder", root, e))?;
    let mut found = Tree { images: Vec::new(), ignored: 0 };
    let mut open = vec![(String::new(), root.to_path_buf())];
    while let Some((prefix, folder)) = open.pop() {
        for (name, path) in entries(&folder, &real_root)? {
            match (path.is_dir(), path.is_symlink()) {
                (true, false) => open.push((format!("{prefix}{name}/"), path)),
                (false, _) if path.is_file() && is_image(&path) => found.images.push(format!("{prefix}{name}")),
                _ => found.ignored += 1,
            }
        }
    }
    found.images.sort();
    Ok(found)
}

/// Whether a file is an image by its name.
#[must_use]
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// The entries of a folder that are not hidden, sorted by name, links checked.
fn entries(folder: &Path, real_root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let read = |e| Error::io("read folder", folder, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        let name = entry.file_name().into_string().ok().filter(|name| !name.contains(['\t', '\n', '\r']));
        let Some(name) = name else {
            return Err(Error::data(format!("{path:?}: names must be UTF-8 without tabs or line ends: rename it")));
        };
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type().map_err(read)?.is_symlink() {
            check_link(&path, real_root)?;
        }
        found.push((name, path));
    }
    found.sort();
    Ok(found)
}

fn check_link(path: &Path, real_root: &Path) -> Result<()> {
    let target = fs::canonicalize(path)
        .map_err(|e| Error::data(format!("link '{}' leads nowhere: remove it", path.display())).with_source(e))?;
    if target.starts_with(real_root) {
        return Ok(());
    }
    Err(Error::data(format!("link '{}' leaves the image folder: copy what it points to", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn images_are_sorted_and_others_counted() {
        let root = tree_of(&[
            "b/2.png",
            "b/10.PNG",
            "a c/x.jpeg",
            "b/notes.txt",
            "b/deep/3.png",
            "top.jpg",
            ".git/a.png",
            "b/._2.png",
        ]);
        let found = scan(root.path()).unwrap();
        let keys: Vec<&str> = found.images.iter().map(|i| i.key.as_str()).collect();
        assert_eq!(keys, ["a c/x.jpeg", "b/10.PNG", "b/2.png"]);
        assert_eq!((found.ignored, found.folders), (3, vec!["a c".to_owned(), "b".to_owned()]));
        assert!(found.images[0].path.is_file() && found.images[0].folder == "a c");
    }

    #[test]
    fn a_tree_is_as_deep_as_it_is() {
        let root = tree_of(&["b/deep/er/1.png", "b/2.JPG", "a.tif", "b/notes.txt", ".git/a.png"]);
        #[cfg(unix)]
        std::os::unix::fs::symlink("b", root.path().join("again")).unwrap();
        let found = tree(root.path()).unwrap();
        assert_eq!(found.images, ["a.tif", "b/2.JPG", "b/deep/er/1.png"]);
        assert_eq!(found.ignored, 1 + usize::from(cfg!(unix)));
        assert!(tree(tree_of(&["notes.txt"]).path()).unwrap().images.is_empty());
    }

    #[test]
    fn empty_folders_are_named() {
        let message = scan(tree_of(&["a/1.png", "b/"]).path()).unwrap_err().to_string();
        assert!(message.contains("/b' has no image"), "{message}");
        assert!(scan(tree_of(&["1.png"]).path()).unwrap_err().to_string().contains("no class folder"));
        let error = scan("/no/such/folder").unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn links_may_not_leave_the_root() {
        use std::os::unix::fs::symlink;
        let outside = tree_of(&["secret/1.png"]);
        let root = tree_of(&["a/1.png"]);
        symlink("1.png", root.path().join("a/2.png")).unwrap();
        assert_eq!(scan(root.path()).unwrap().images.len(), 2);
        symlink(outside.path().join("secret"), root.path().join("b")).unwrap();
        assert!(scan(root.path()).unwrap_err().to_string().contains("leaves the image folder"));
        fs::remove_file(root.path().join("b")).unwrap();
        symlink(outside.path().join("secret/1.png"), root.path().join("a/3.png")).unwrap();
        assert!(scan(root.path()).unwrap_err().to_string().contains("a/3.png"));
        fs::remove_file(root.path().join("a/3.png")).unwrap();
        symlink("gone.png", root.path().join("a/4.png")).unwrap();
        assert!(scan(root.path()).unwrap_err().to_string().contains("leads nowhere"));
    }
}
