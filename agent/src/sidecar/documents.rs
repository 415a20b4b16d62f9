//! Reads the documents of a folder: bounded, in a stable order.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::watch::is_hidden;

/// Files of a folder.
const MAX_FILES: usize = 4096;
/// Bytes of all files together.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// Where a document was read, and its text.
pub type Document = (PathBuf, String);

/// All `.yaml`, `.yml` and `.json` files directly in a folder, by name; or the one file that `path` is.
///
/// # Errors
/// With the file, when it cannot be read, is not UTF-8, or there is too much of it.
pub fn read(path: &Path) -> io::Result<Vec<Document>> {
    let files = if path.is_dir() { list(path)? } else { vec![path.to_owned()] };
    let mut left = MAX_BYTES;
    let mut documents = Vec::with_capacity(files.len());
    for file in files {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
        let mut text = String::new();
        let length = File::open(&file).and_then(|open| open.take(left + 1).read_to_string(&mut text)).map_err(named)?;
        left = left.checked_sub(length as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{}: more than {MAX_BYTES} bytes of configuration", path.display()),
            )
        })?;
        documents.push((file, text));
    }
    Ok(documents)
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_document =
            path.extension().and_then(|extension| extension.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"));
        if is_document && !path.file_name().is_some_and(is_hidden) && path.is_file() {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            let message = format!("{}: more than {MAX_FILES} files of configuration", folder.display());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
    }
    if files.is_empty() {
        // An emptied folder is a mistake or half a deployment, never a wish to serve nothing.
        let message = format!("{}: no .yaml, .yml or .json file in it", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_documents_by_name_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yml", "a.yaml", ".hidden.yaml", "README.md", "c.json"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("folder.yaml")).unwrap();
        let texts: Vec<_> = read(folder.path()).unwrap().into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["a.yaml", "b.yml", "c.json"]);
        assert_eq!(read(&folder.path().join("README.md")).unwrap().len(), 1);
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), [0xff, 0xfe]).unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a.yaml: "), "{error}");
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert!(read(folder.path()).unwrap_err().to_string().ends_with("no .yaml, .yml or .json file in it"));
        assert!(read(&folder.path().join("missing.yaml")).unwrap_err().to_string().contains("missing.yaml: "));
    }
}
