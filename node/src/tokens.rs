//! Tokens of the HTTP interface: who may ask what.
//!
//! The file holds names, scopes and digests. A token itself is shown once, when it is made; it is never stored or logged. The file is
//! read again when it changes, so taking a token away is deleting its lines.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use metaflow_tls::{Error, Reloading};
use serde::Deserialize;

use crate::secrets::{self, Digest};

/// Tokens of one file: each request is compared with all of them.
const TOKENS_MAX: usize = 1000;
const NAME_BYTES_MAX: usize = 64;
/// What tokens begin with, so that people and scanners of leaked secrets know them.
const PREFIX: &str = "mf_";

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Send rows.
    Ingest,
    /// Ask, and read metrics.
    Read,
    /// Everything, changes among it.
    Admin,
}

impl Scope {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// The tokens of a file.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokens: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    name: String,
    scopes: Vec<Scope>,
    digest: Digest,
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoToken,
    UnknownToken,
    Scope,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    scopes: Vec<Scope>,
    sha256: String,
}

impl Tokens {
    /// Reads `http.tokens_file`, now and whenever it changes.
    pub(crate) fn load(file: PathBuf) -> Result<Reloading<Self>, Error> {
        let path = file.clone();
        Reloading::load(vec![file], move |contents| {
            let content = contents.first().map(Vec::as_slice).unwrap_or_default();
            let failed = |reason: String| Error::Content { path: path.clone(), reason };
            let text = std::str::from_utf8(content).map_err(|error| failed(error.to_string()))?;
            Self::parse(text).map_err(|error| failed(format!("{error:#}")))
        })
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        // The parser's own words show the line, which may hold a digest, or a token that somebody put there by mistake.
        let file: File = toml::from_str(text)
            .map_err(|error| anyhow::anyhow!("it is not a list of tokens: {}", error.message()))?;
        ensure!(file.token.len() <= TOKENS_MAX, "more than {TOKENS_MAX} tokens");
        let mut tokens: Vec<Token> = Vec::new();
        for Entry { name, scopes, sha256 } in file.token {
            check_name(&name)?;
            ensure!(!tokens.iter().any(|token| token.name == name), "two tokens are named {name}");
            ensure!(!scopes.is_empty(), "token {name} has no scope");
            let digest = Digest::from_hex(&sha256)
                .with_context(|| format!("sha256 of token {name} is not 64 hexadecimal digits"))?;
            tokens.push(Token { name, scopes, digest });
        }
        Ok(Self { tokens })
    }

    /// Whether who shows this `Authorization` may do what needs `scope`.
    pub(crate) fn check(&self, authorization: Option<&[u8]>, scope: Scope) -> Result<(), Refusal> {
        let shown = authorization.and_then(bearer).ok_or(Refusal::NoToken)?;
        let shown = Digest::of(shown);
        // All are compared, so that the time does not tell which one it was.
        let mut found = None;
        for token in &self.tokens {
            if token.digest.equals(&shown) {
                found = Some(token);
            }
        }
        let scopes = &found.ok_or(Refusal::UnknownToken)?.scopes;
        if scopes.contains(&scope) || scopes.contains(&Scope::Admin) { Ok(()) } else { Err(Refusal::Scope) }
    }
}

/// The token of `Bearer TOKEN`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let is_name = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte));
    ensure!(is_name, "a token's name has 1 to {NAME_BYTES_MAX} letters, digits and ._-@");
    Ok(())
}

/// Makes a token and adds its digest to the file, which is made when it is missing. Gives the token: there is no other copy.
pub(crate) fn create(file: &Path, name: &str, scopes: &[Scope]) -> anyhow::Result<String> {
    check_name(name)?;
    ensure!(!scopes.is_empty(), "a token needs a scope");
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "# Tokens of the HTTP interface, made by `metaflow ctl token create`. To take one away, delete its lines.\n".to_owned()
        }
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", file.display())),
    };
    let tokens = Tokens::parse(&text).with_context(|| format!("in {}", file.display()))?;
    if tokens.tokens.iter().any(|token| token.name == name) {
        bail!("{} has a token named {name}: take another name, or delete its lines", file.display());
    }
    let secret = secrets::generate().context("the system gives no random bytes")?;
    let token = format!("{PREFIX}{secret}");
    let names: Vec<String> = scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
    let digest = Digest::of(token.as_bytes()).to_hex();
    let text = format!(
        "{}\n\n[[token]]\nname = \"{name}\"\nscopes = [{}]\nsha256 = \"{digest}\"\n",
        text.trim_end(),
        names.join(", ")
    );
    write(file, &text).with_context(|| format!("failed to write {}", file.display()))?;
    Ok(token)
}

/// Writes the whole file or nothing: a node may read it at any moment. Its owner and rights stay when it is there.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    if let Ok(metadata) = fs::metadata(file) {
        use std::os::unix::fs::MetadataExt as _;
        out.set_permissions(metadata.permissions())?;
        std::os::unix::fs::fchown(&out, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn check(tokens: &Tokens, authorization: &str, scope: Scope) -> Result<(), Refusal> {
        tokens.check(Some(authorization.as_bytes()), scope)
    }

    #[test]
    fn a_token_is_good_for_its_scopes_and_admin_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.toml");
        let read = create(&file, "grafana", &[Scope::Read]).unwrap();
        let both = create(&file, "tool", &[Scope::Read, Scope::Ingest]).unwrap();
        let admin = create(&file, "me@home", &[Scope::Admin]).unwrap();
        let tokens = Tokens::load(file).unwrap().get();
        let mut allowed = Vec::new();
        for token in [&read, &both, &admin] {
            for scope in [Scope::Ingest, Scope::Read, Scope::Admin] {
                allowed.push(check(&tokens, &format!("Bearer {token}"), scope).is_ok());
            }
        }
        assert_eq!(allowed, [false, true, false, true, true, false, true, true, true]);
        assert_eq!(check(&tokens, &format!("bearer  {read} "), Scope::Read), Ok(()));
        assert_eq!(check(&tokens, &format!("Bearer {read}"), Scope::Admin), Err(Refusal::Scope));
        for wrong in ["Bearer ", "Bearer mf_1", &format!("Bearer {read}0"), "Bearer \u{0}ü"] {
            assert_eq!(check(&tokens, wrong, Scope::Read), Err(Refusal::UnknownToken), "{wrong}");
        }
        for none in ["", "Bear", "Basic dTpw", &read] {
            assert_eq!(check(&tokens, none, Scope::Read), Err(Refusal::NoToken), "{none}");
        }
        assert_eq!(tokens.check(None, Scope::Read), Err(Refusal::NoToken));
    }

    #[test]
    fn the_file_holds_no_token_and_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.toml");
        let token = create(&file, "grafana", &[Scope::Read]).unwrap();
        let secret = token.strip_prefix(PREFIX).unwrap();
        assert!(!fs::read_to_string(&file).unwrap().contains(secret));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_ne!(create(&file, "other", &[Scope::Read]).unwrap(), token);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        let again = create(&file, "grafana", &[Scope::Admin]).unwrap_err();
        assert!(again.to_string().contains("grafana"), "{again}");
        assert!(create(&file, "a \"b\"", &[Scope::Read]).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_was_deleted_is_unknown_after_a_look_at_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.toml");
        let token = format!("Bearer {}", create(&file, "a", &[Scope::Read]).unwrap());
        let tokens = Tokens::load(file.clone()).unwrap();
        assert_eq!(check(&tokens.get(), &token, Scope::Read), Ok(()));
        fs::write(&file, "").unwrap();
        tokens.reload();
        assert_eq!(check(&tokens.get(), &token, Scope::Read), Err(Refusal::UnknownToken));
    }

    #[test]
    fn files_that_make_no_sense_are_refused_without_showing_them() {
        let good = "0".repeat(64);
        for (text, part) in [
            ("mf_secret", "not a list of tokens"),
            ("[[token]]\nname = 'a'\nscopes = ['read']\ntoken = 'mf_secret'", "token"),
            ("[[token]]\nname = 'a'\nscopes = ['read']\nsha256 = 'mf_secret'", "64"),
            (&format!("[[token]]\nname = 'a'\nscopes = []\nsha256 = '{good}'"), "no scope"),
            (&format!("[[token]]\nname = 'a'\nscopes = ['all']\nsha256 = '{good}'"), "all"),
            (&format!("[[token]]\nname = ''\nscopes = ['read']\nsha256 = '{good}'"), "name"),
            (&format!("[[token]]\nname = 'a'\nscopes = ['read']\nsha256 = '{good}'\n").repeat(2), "named a"),
        ] {
            let error = format!("{:#}", Tokens::parse(text).unwrap_err());
            assert!(error.contains(part) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
