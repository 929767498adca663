//! What was made of files, made anew when they change.
//!
//! Files are compared by content, so a changed link or a restored time changes nothing by itself. Content that cannot be used is
//! reported once and what was there stays: half-written files do not end a service.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::Error;

/// How often the files are looked at, at most; they are small.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Certificates, keys and lists of tokens are far smaller.
const FILE_BYTES_MAX: u64 = 4 << 20;

type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, Error> + Send + Sync;

/// A value and the files that it is made of.
pub struct Reloading<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// What was made, or tried, last.
    contents: Vec<Vec<u8>>,
    looked: Instant,
}

impl<T> Reloading<T> {
    /// Reads the files and makes the value; `make` gets their contents in order.
    pub fn load(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let contents = read(&files)?;
        let value = Arc::new(make(&contents)?);
        let state = Mutex::new(State { value, contents, looked: Instant::now() });
        Ok(Self { files, make: Box::new(make), state })
    }

    /// The value, after a look at the files when the last one is some seconds ago.
    pub fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_INTERVAL {
            self.look(&mut state);
        }
        Arc::clone(&state.value)
    }

    /// Looks at the files now.
    pub fn reload(&self) {
        self.look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn look(&self, state: &mut State<T>) {
        state.looked = Instant::now();
        let file = self.files.first().map(|file| file.display());
        let contents = match read(&self.files) {
            Ok(contents) => contents,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a file cannot be read again");
                return;
            }
        };
        if contents == state.contents {
            return;
        }
        match (self.make)(&contents) {
            Ok(value) => {
                state.value = Arc::new(value);
                tracing::info!(file = file.map(tracing::field::display), "changed files were taken over");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "changed files cannot be used; what they said before still holds");
            }
        }
        state.contents = contents;
    }
}

impl<T> fmt::Debug for Reloading<T> {
    /// The value may be a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, Error> {
    files.iter().map(|path| read_file(path)).collect()
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: path.to_owned(), max: FILE_BYTES_MAX });
    }
    Ok(content)
}
