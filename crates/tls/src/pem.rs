//! Certificates and keys out of PEM text.

use std::path::Path;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{Error, validity};

pub(crate) fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Pem { path: path.to_owned(), reason: error.to_string() })?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

/// The error never holds a part of the content.
pub(crate) fn key(path: &Path, content: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(content).map_err(|_| Error::Pem {
        path: path.to_owned(),
        reason: "no private key (PKCS#8, SEC1 or PKCS#1) is in it".to_owned(),
    })
}

/// Authorities, and the end of the last of them. Those that have ended are left out, unless that would leave none.
pub(crate) fn authorities(path: &Path, content: &[u8]) -> Result<(RootCertStore, u64), Error> {
    let failed = |reason: String| Error::Authority { path: path.to_owned(), reason };
    let now = validity::now();
    let mut found = Vec::new();
    for certificate in certificates(path, content)? {
        let end =
            validity::end(&certificate).ok_or_else(|| failed("its validity cannot be read".to_owned()))?;
        if end < now {
            tracing::warn!(file = %path.display(), "a certificate of an authority has ended");
        }
        found.push((certificate, end));
    }
    let last_end = found.iter().map(|(_, end)| *end).max().unwrap_or(0);
    let mut store = RootCertStore::empty();
    for (certificate, end) in found {
        if end >= now || last_end < now {
            store.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok((store, last_end))
}
