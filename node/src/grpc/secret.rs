//! The secret that the nodes of a cluster share: added to every call between nodes, and checked by the one that is called.
//!
//! What goes over the wire is the secret's digest, so a file may hold any text; the digest is as good as the secret to whoever reads
//! along, which is what encryption between nodes is for. A file of two lines changes the secret without a pause: the first line is sent,
//! each is believed.

use std::{fmt, path::PathBuf, sync::Arc};

use metaflow_tls::{Error, Reloading};
use ring::hmac;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    service::Interceptor,
};

use super::proofs;
use crate::secrets::Digest;

/// The name of the header.
const HEADER: &str = "metaflow-cluster-secret";
/// A shorter secret could be guessed.
const BYTES_MIN: usize = 32;
/// The secret and the one before or after it.
const LINES_MAX: usize = 4;

/// The cluster's secret; clones share it. The file is read again when it changes.
#[derive(Clone)]
pub(crate) struct Secret {
    lines: Arc<Reloading<Lines>>,
}

struct Lines {
    header: MetadataValue<Ascii>,
    believed: Vec<Digest>,
    /// For what agents are given, in the order of the lines.
    keys: Vec<hmac::Key>,
}

impl Secret {
    /// Reads `cluster.secret_file`.
    pub(crate) fn load(file: PathBuf) -> Result<Self, Error> {
        let path = file.clone();
        let lines = Reloading::load(vec![file], move |contents| {
            parse(contents).map_err(|reason| Error::Content { path: path.clone(), reason })
        })?;
        Ok(Self { lines: Arc::new(lines) })
    }

    /// What agents are given is signed with the first of these; each is believed.
    pub(super) fn keys<T>(&self, read: impl FnOnce(&[hmac::Key]) -> T) -> T {
        read(&self.lines.get().keys)
    }

    /// Lets a call in, or not, by its headers. It never says what was wrong with the secret.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(shown) = metadata.get(HEADER) else {
            return Err(Status::unauthenticated(
                "the call has no cluster secret; set cluster.secret_file on every node",
            ));
        };
        let shown = Digest::of(shown.as_bytes());
        // All are compared, so that the time does not tell which one it was.
        let lines = self.lines.get();
        let found = lines.believed.iter().fold(false, |found, digest| digest.equals(&shown) | found);
        if found { Ok(()) } else { Err(Status::unauthenticated("the cluster secret is another one")) }
    }
}

/// Who is believed to be a node of this cluster.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// Nobody: the node is alone.
    Nobody,
    /// Who shows the secret.
    Shared(Secret),
    /// Who connects: there are to be other nodes, and the operator wrote that no secret is needed.
    Everybody,
}

impl Trust {
    pub(crate) fn new(secret: Option<Secret>, is_several: bool) -> Self {
        match secret {
            Some(secret) => Self::Shared(secret),
            None if is_several => Self::Everybody,
            None => Self::Nobody,
        }
    }

    /// Lets a call in, or not, by its headers.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        match self {
            Self::Nobody => Err(Status::unauthenticated(
                "this node is a cluster of one: set cluster.seeds and cluster.secret_file",
            )),
            Self::Shared(secret) => secret.check(metadata),
            Self::Everybody => Ok(()),
        }
    }
}

/// Adds the secret to a call: `NodeServiceClient::with_interceptor(channel, secret.clone())`.
impl Interceptor for Secret {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(HEADER, self.lines.get().header.clone());
        Ok(request)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

fn parse(contents: &[Vec<u8>]) -> Result<Lines, String> {
    let secrets: Vec<&[u8]> = contents
        .iter()
        .flat_map(|content| content.split(|byte| *byte == b'\n'))
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
        .collect();
    if secrets.len() > LINES_MAX {
        return Err(format!("more than {LINES_MAX} secrets"));
    }
    if secrets.iter().any(|secret| secret.len() < BYTES_MIN) {
        return Err(format!(
            "a secret has at least {BYTES_MIN} characters; make one with `openssl rand -hex 32`"
        ));
    }
    let headers: Vec<String> = secrets.iter().map(|secret| Digest::of(secret).to_hex()).collect();
    let first = headers.first().ok_or("it holds no secret")?;
    let mut header: MetadataValue<Ascii> = first.parse().map_err(|_| "no header can be made of it")?;
    header.set_sensitive(true);
    let keys = secrets.iter().map(|secret| proofs::key(secret)).collect();
    Ok(Lines { header, believed: headers.iter().map(|header| Digest::of(header.as_bytes())).collect(), keys })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "11111111111111111111111111111111";
    const TWO: &str = "22222222222222222222222222222222 with spaces and ünicode";

    /// A secret from a file, and the folder to keep while it is used.
    fn secret(text: &str) -> (tempfile::TempDir, Secret) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, text).unwrap();
        let secret = Secret::load(file).unwrap();
        (folder, secret)
    }

    fn call(secret: &Secret) -> MetadataMap {
        secret.clone().call(Request::new(())).unwrap().into_parts().0
    }

    #[test]
    fn who_shares_the_secret_is_let_in_and_nobody_else() {
        let ((_a, one), (_b, same), (_c, two)) = (secret(ONE), secret(&format!("{ONE}\n")), secret(TWO));
        one.check(&call(&same)).unwrap();
        two.check(&call(&two)).unwrap();
        let refused = one.check(&call(&two)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        let missing = one.check(&MetadataMap::new()).unwrap_err();
        assert!(missing.message().contains("cluster.secret_file"), "{missing}");
        let mut forged = MetadataMap::new();
        forged.insert(HEADER, ONE.parse().unwrap());
        one.check(&forged).unwrap_err();
    }

    #[test]
    fn a_node_that_is_alone_believes_nobody() {
        let (_folder, one) = secret(ONE);
        let check = |trust: Trust, headers: &MetadataMap| trust.check(headers).is_ok();
        assert!(!check(Trust::new(None, false), &call(&one)));
        for is_several in [false, true] {
            assert!(check(Trust::new(Some(one.clone()), is_several), &call(&one)));
            assert!(!check(Trust::new(Some(one.clone()), is_several), &MetadataMap::new()));
        }
        assert!(check(Trust::new(None, true), &MetadataMap::new()));
    }

    #[test]
    fn a_secret_changes_without_a_pause() {
        let ((_a, old), (_b, both), (_c, new)) = (secret(ONE), secret(&format!("{TWO}\n{ONE}")), secret(TWO));
        both.check(&call(&old)).unwrap();
        new.check(&call(&both)).unwrap();
        old.check(&call(&both)).unwrap_err();
        let (folder, changing) = secret(ONE);
        std::fs::write(folder.path().join("secret"), TWO).unwrap();
        changing.lines.reload();
        changing.check(&call(&new)).unwrap();
    }

    #[test]
    fn the_secret_is_not_printed_and_a_bad_file_is_named() {
        let (_folder, one) = secret(ONE);
        let headers = call(&one);
        assert!(!headers.get(HEADER).unwrap().to_str().unwrap().contains(ONE));
        assert!(!format!("{one:?} {headers:?}").contains(&Digest::of(ONE.as_bytes()).to_hex()));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        for (text, part) in
            [("", "no secret"), ("short", "at least"), (&format!("{ONE}\n").repeat(5), "more than")]
        {
            std::fs::write(&file, text).unwrap();
            let error = Secret::load(file.clone()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(&file.display().to_string()), "{error}");
        }
    }
}
