//! Calls into libchdb: the only code that loads it.
//!
//! The library is ClickHouse built as a shared object; what is called is its command line, which serves HTTP and TCP. It is never
//! unloaded: its threads outlive the call.
#![allow(unsafe_code, reason = "a foreign library has no safe interface")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
};

use anyhow::{Context, bail};
use libloading::{Library, Symbol};

type SetSignalHandlers = unsafe extern "C" fn(c_int);
type CommandLine = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;
type ResultError = unsafe extern "C" fn(*mut c_void) -> *const c_char;

/// Runs the library's command line; returns when its last statement has ended.
pub(super) fn serve(path: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let arguments: Vec<CString> = arguments
        .iter()
        .map(|argument| CString::new(argument.as_str()))
        .collect::<Result<_, _>>()
        .context("an argument of the engine contains a zero byte")?;
    // argv is an array that ends with a null pointer, as for main().
    let mut pointers: Vec<*mut c_char> =
        arguments.iter().map(|argument| argument.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let count = c_int::try_from(arguments.len()).context("too many arguments for the engine")?;

    // SAFETY: the library's initialisers have no preconditions; the file is the one that the operator named.
    let library = unsafe { Library::new(path) }
        .with_context(|| format!("failed to load the engine at {}", path.display()))?;
    // The library's threads run until the process ends, so its code must stay mapped.
    let library: &'static Library = Box::leak(Box::new(library));

    // SAFETY: the types are those of chdb.h of the pinned version.
    let (set_signal_handlers, command_line, result_error) = unsafe {
        let set: Symbol<'_, SetSignalHandlers> = library
            .get(b"chdb_set_signal_handlers_enabled\0")
            .context("the engine's library is of another version: run ./dev engine")?;
        let command_line: Symbol<'_, CommandLine> =
            library.get(b"chdb_query_cmdline\0").context("the engine's library has no command line")?;
        let error: Symbol<'_, ResultError> =
            library.get(b"chdb_result_error\0").context("the engine's library reports no errors")?;
        (set, command_line, error)
    };
    // SAFETY: the pointers are to zero-terminated strings that live until after the call; the result is read before the process ends.
    let error = unsafe {
        set_signal_handlers(0);
        let result = command_line(count, pointers.as_mut_ptr());
        if result.is_null() {
            bail!("the engine gave no result");
        }
        let error = result_error(result);
        if error.is_null() { None } else { Some(CStr::from_ptr(error).to_string_lossy().into_owned()) }
    };
    match error.filter(|text| !text.is_empty()) {
        Some(text) => bail!("the engine stopped: {text}"),
        None => Ok(()),
    }
}
