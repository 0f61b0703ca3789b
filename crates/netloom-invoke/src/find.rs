//! Lookup of plugins in `CNI_PATH`.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use netloom_types::name::is_plugin_type;

/// The reason a plugin was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The type is empty.
    #[error("no plugin name provided")]
    NoName,
    /// The type is not a file name.
    #[error("invalid plugin name: {0}")]
    InvalidName(String),
    /// The list of folders is empty.
    #[error("no paths provided: set CNI_PATH to the folders with plugins, such as /opt/cni/bin")]
    NoPaths,
    /// No folder contains an executable file of that name.
    #[error("failed to find plugin {name:?} in path [{searched}]{}", hint(not_executable.as_deref()))]
    NotFound {
        /// The plugin's type.
        name: String,
        /// The folders, separated by spaces.
        searched: String,
        /// A file of that name that cannot be executed.
        not_executable: Option<PathBuf>,
    },
}

fn hint(not_executable: Option<&Path>) -> String {
    not_executable
        .map_or_else(String::new, |path| format!(" ({} exists but is not executable)", path.display()))
}

/// Returns the first executable file of that name.
///
/// # Errors
/// If the name is not a file name or no folder contains such a file.
pub fn find_in_path(name: &str, paths: &[PathBuf]) -> Result<PathBuf, FindError> {
    if name.is_empty() {
        return Err(FindError::NoName);
    }
    if !is_plugin_type(name) {
        return Err(FindError::InvalidName(name.escape_debug().to_string()));
    }
    if paths.is_empty() {
        return Err(FindError::NoPaths);
    }
    let mut not_executable = None;
    for dir in paths {
        let path = dir.join(name);
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if !metadata.is_file() {
            continue;
        }
        if metadata.permissions().mode() & 0o111 != 0 {
            return Ok(path);
        }
        not_executable.get_or_insert(path);
    }
    let searched: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    Err(FindError::NotFound { name: name.to_owned(), searched: searched.join(" "), not_executable })
}

/// Splits `CNI_PATH` at `:` and drops empty parts.
pub fn split_path(text: &str) -> Vec<PathBuf> {
    text.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

/// The identity of a file, independent of its name: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Returns the identity of the file at a path, or `None` if the file does not exist.
    pub fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Returns the identity of an open file.
    ///
    /// # Errors
    /// If the file cannot be examined.
    pub fn of_file(file: &fs::File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// Returns whether a plugin file is the running program: the same inode, or a copy that was installed beside it.
///
/// `netloom install` creates one inode for each name, all with the same size and modification time. A foreign or damaged file
/// differs in one of these. The first page is compared as well, because files of a container image may have equal times. In an
/// ELF header (elf(5)) the offset of the section headers and the entry point depend on the code.
pub fn is_this_program(path: &Path) -> bool {
    let running = Path::new("/proc/self/exe");
    let (Ok(found), Ok(own)) = (fs::metadata(path), fs::metadata(running)) else { return false };
    if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
        return true;
    }
    let looks = |file: &fs::Metadata| {
        (file.len(), file.mtime(), file.mtime_nsec(), file.mode(), file.uid(), file.gid())
    };
    looks(&found) == looks(&own)
        && in_folder_of_this_program(path)
        && first_page_is_ours(path).unwrap_or(false)
}

fn in_folder_of_this_program(path: &Path) -> bool {
    let own = fs::read_link("/proc/self/exe").ok();
    let own = own.as_deref().and_then(Path::parent);
    match (path.parent(), own) {
        (Some(found), Some(own)) => {
            found == own || FileId::of(found).is_some_and(|id| Some(id) == FileId::of(own))
        }
        _ => false,
    }
}

fn first_page_is_ours(path: &Path) -> io::Result<bool> {
    let mut pages = [[0; 4096]; 2];
    for (path, page) in [path, Path::new("/proc/self/exe")].into_iter().zip(&mut pages) {
        fs::File::open(path)?.read_exact_at(page, 0)?;
    }
    Ok(pages[0] == pages[1])
}
