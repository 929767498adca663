//! `metaflow ctl cert bootstrap`: a small private authority, and certificates of it for nodes and agents.
//!
//! For who has no authority of their own. Keys are written for their owner alone and never printed. Run again with the same folder, it
//! gives out more certificates of the same authority. Leaves out: revocation; an authority that is not trusted any more is replaced.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::{Failure, alone};
use crate::{clock, secrets::Digest};

/// Ten years.
const AUTHORITY_DAYS: i64 = 3653;
/// Clocks differ a little: who is behind must believe a new certificate too.
const CLOCK_SKEW: Duration = Duration::hours(1);
/// How a node is reached on its own machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Make a small private authority, and certificates of it for nodes and agents.
    Bootstrap(Bootstrap),
}

pub(super) fn run(Verb::Bootstrap(order): Verb) -> Result<(), Failure> {
    alone(bootstrap(&order, clock::seconds()))
}

/// What to make.
#[derive(Debug, clap::Args)]
pub(super) struct Bootstrap {
    /// Folder of the files; an authority that is there already is used.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// A node's name, then other names and addresses at which it is reached; may be given several times.
    #[arg(long = "node", value_name = "NAME[,ALT...]")]
    nodes: Vec<String>,
    /// Also make a certificate that all agents use.
    #[arg(long)]
    agents: bool,
    /// Days that the certificates of nodes and agents hold; the authority holds ten years.
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// A certificate to make.
struct Leaf {
    /// Of the files.
    name: String,
    names: Vec<String>,
    purposes: Vec<Purpose>,
}

/// Makes the files; gives what to do with them. `now` is in seconds since 1970.
fn bootstrap(order: &Bootstrap, now: u32) -> anyhow::Result<String> {
    let Bootstrap { directory, nodes, agents, days } = order;
    ensure!(!nodes.is_empty() || *agents, "nothing to make: name a node with --node, or say --agents");
    let mut leaves = nodes.iter().map(|node| node_leaf(node)).collect::<anyhow::Result<Vec<_>>>()?;
    if *agents {
        leaves.push(Leaf {
            name: "agent".to_owned(),
            names: vec!["agent".to_owned()],
            purposes: vec![Purpose::ClientAuth],
        });
    }
    for (index, leaf) in leaves.iter().enumerate() {
        ensure!(leaves[..index].iter().all(|other| other.name != leaf.name), "{} is named twice", leaf.name);
        for ending in ["crt", "key"] {
            let file = path(directory, &leaf.name, ending);
            ensure!(!file.exists(), "{} is there already and is not overwritten", file.display());
        }
    }
    let now = OffsetDateTime::from_unix_timestamp(now.into()).context("the clock is off")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("failed to make {}", directory.display()))?;
    let authority = authority(directory, now)?;
    for leaf in &leaves {
        issue(directory, &authority, leaf, now, i64::from(*days))?;
    }
    Ok(report(directory, &leaves))
}

fn node_leaf(node: &str) -> anyhow::Result<Leaf> {
    let mut names: Vec<String> = node.split(',').map(|name| name.trim().to_owned()).collect();
    for name in &names {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        ensure!(is_name || name.parse::<IpAddr>().is_ok(), "{name:?} is neither a name nor an address");
    }
    let name = names.first().cloned().unwrap_or_default();
    ensure!(name != "ca" && name != "agent", "{name:?} is the name of other files here");
    names.extend(LOCAL.map(str::to_owned));
    names.dedup();
    Ok(Leaf { name, names, purposes: vec![Purpose::ServerAuth, Purpose::ClientAuth] })
}

fn path(directory: &Path, name: &str, ending: &str) -> PathBuf {
    directory.join(format!("{name}.{ending}"))
}

/// The authority of the folder, made when there is none.
fn authority(directory: &Path, now: OffsetDateTime) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let (certificate, key_file) = (path(directory, "ca", "crt"), path(directory, "ca", "key"));
    if certificate.exists() != key_file.exists() {
        bail!(
            "only one of {} and {} is there: put the other back",
            certificate.display(),
            key_file.display()
        );
    }
    if key_file.exists() {
        let failed = || format!("failed to read {}", key_file.display());
        let key =
            KeyPair::from_pem(&fs::read_to_string(&key_file).with_context(failed)?).with_context(failed)?;
        ensure!(
            metaflow_tls::has_key(&certificate, key.public_key_raw())?,
            "{} is not the key of {}",
            key_file.display(),
            certificate.display()
        );
        return Ok(Issuer::new(authority_params(&key, now), key));
    }
    let key = KeyPair::generate().context("failed to make a key")?;
    let params = authority_params(&key, now);
    let made = params.self_signed(&key).context("failed to sign the authority")?;
    write(&key_file, &key.serialize_pem(), 0o600)?;
    write(&certificate, &made.pem(), 0o644)?;
    Ok(Issuer::new(params, key))
}

fn authority_params(key: &KeyPair, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Its key makes the name unique: authorities of one name would be mixed up, and their errors mislead.
    let digest = Digest::of(key.public_key_raw()).to_hex();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("MetaFlow authority {}", &digest[..12]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(AUTHORITY_DAYS);
    params
}

fn issue(
    directory: &Path,
    authority: &Issuer<'static, KeyPair>,
    leaf: &Leaf,
    now: OffsetDateTime,
    days: i64,
) -> anyhow::Result<()> {
    let Leaf { name, names, purposes } = leaf;
    let failed = || format!("failed to make the certificate of {name}");
    let mut params = CertificateParams::new(names.clone()).with_context(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages.clone_from(purposes);
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days);
    let key = KeyPair::generate().with_context(failed)?;
    let certificate = params.signed_by(&key, authority).with_context(failed)?;
    write(&path(directory, name, "key"), &key.serialize_pem(), 0o600)?;
    write(&path(directory, name, "crt"), &certificate.pem(), 0o644)
}

/// Writes a file that must not be there.
fn write(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    };
    write().with_context(|| format!("failed to write {}", file.display()))
}

fn report(directory: &Path, leaves: &[Leaf]) -> String {
    let show = |name: &str, ending: &str| path(directory, name, ending).display().to_string();
    let mut text = String::new();
    for Leaf { name, purposes, .. } in leaves {
        let (crt, key, ca) = (show(name, "crt"), show(name, "key"), show("ca", "crt"));
        if purposes.contains(&Purpose::ServerAuth) {
            text += &format!(
                "Node {name}: copy {crt}, {key} and {ca} to it, readable by its user alone, and write into its node.toml:\n\n  [tls]\n  \
                 certificate = \"/etc/metaflow/tls/{name}.crt\"\n  key = \"/etc/metaflow/tls/{name}.key\"\n  client_authority = \
                 \"/etc/metaflow/tls/ca.crt\"\n\n"
            );
        } else {
            text += &format!(
                "Agents: copy {crt}, {key} and {ca} to each host, readable by the agent's user alone, and write into agent.toml:\n\n  [tls]\n  \
                 authority = \"/etc/metaflow/tls/ca.crt\"\n  certificate = \"/etc/metaflow/tls/{name}.crt\"\n  key = \
                 \"/etc/metaflow/tls/{name}.key\"\n\n"
            );
        }
    }
    text += &format!(
        "Commands: metaflow ctl --ca {} --url https://HOST:20416 ...\nKeep {} away from all of them: whoever has it can make certificates.\n",
        show("ca", "crt"),
        show("ca", "key")
    );
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use metaflow_tls::{Client, ClientFiles, HTTP_2, Identity, Server, ServerFiles};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock;

    fn order(directory: &Path, nodes: &[&str], agents: bool) -> Bootstrap {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        Bootstrap { directory: directory.to_owned(), nodes, agents, days: 30 }
    }

    fn identity(directory: &Path, name: &str) -> Identity {
        Identity { certificate: path(directory, name, "crt"), key: path(directory, name, "key") }
    }

    /// Whether `client` gets a connection to `server` at 127.0.0.1.
    async fn meet(server: &str, client: &str, directory: &Path) -> Result<(), String> {
        let ca = path(directory, "ca", "crt");
        let files = ServerFiles { identity: identity(directory, server), client_authority: Some(ca.clone()) };
        let server = Server::load(files, HTTP_2).unwrap();
        let files = ClientFiles { authority: ca, identity: Some(identity(directory, client)) };
        let client = Client::load(files, HTTP_2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = async { server.accept(listener.accept().await.unwrap().0).await };
        let (accepted, connected) = tokio::join!(accepting, client.connect("127.0.0.1", port));
        accepted.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        connected.map(drop).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    #[tokio::test]
    async fn what_it_makes_works_together_and_an_agent_is_no_node() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("new/tls");
        let text = bootstrap(&order(&directory, &["n1,10.0.0.1"], true), clock::seconds()).unwrap();
        assert!(text.contains("n1.crt") && text.contains("[tls]") && !text.contains("PRIVATE"), "{text}");
        meet("n1", "agent", &directory).await.unwrap();
        meet("n1", "n1", &directory).await.unwrap();
        meet("agent", "n1", &directory).await.unwrap_err();
        // A second run gives out more of the same authority.
        bootstrap(&order(&directory, &["n2"], false), clock::seconds()).unwrap();
        meet("n2", "n1", &directory).await.unwrap();
    }

    #[test]
    fn keys_are_for_their_owner_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        bootstrap(&order(directory, &["n1"], true), clock::seconds()).unwrap();
        for name in ["ca", "n1", "agent"] {
            let mode = fs::metadata(path(directory, name, "key")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let before = fs::read(path(directory, "n1", "key")).unwrap();
        let error = bootstrap(&order(directory, &["n3", "n1"], false), clock::seconds()).unwrap_err();
        assert!(error.to_string().contains("n1.crt is there already"), "{error}");
        assert_eq!(fs::read(path(directory, "n1", "key")).unwrap(), before);
        assert!(!path(directory, "n3", "key").exists());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        for (nodes, part) in [
            (&[][..], "--node"),
            (&[""], "neither"),
            (&["../n1"], "neither"),
            (&["a b"], "neither"),
            (&["n1,"], "neither"),
            (&["ca"], "other files"),
            (&["n1", "n1"], "twice"),
        ] {
            let error = bootstrap(&order(directory, nodes, false), clock::seconds()).unwrap_err();
            assert!(error.to_string().contains(part), "{nodes:?}: {error}");
        }
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
        let other = tempfile::tempdir().unwrap();
        bootstrap(&order(directory, &["n1"], false), clock::seconds()).unwrap();
        bootstrap(&order(other.path(), &["n1"], false), clock::seconds()).unwrap();
        fs::copy(path(other.path(), "ca", "key"), path(directory, "ca", "key")).unwrap();
        let error = bootstrap(&order(directory, &["n2"], false), clock::seconds()).unwrap_err();
        assert!(error.to_string().contains("is not the key of"), "{error}");
        fs::remove_file(path(directory, "ca", "key")).unwrap();
        let error = bootstrap(&order(directory, &["n2"], false), clock::seconds()).unwrap_err();
        assert!(error.to_string().contains("only one of"), "{error}");
    }
}
