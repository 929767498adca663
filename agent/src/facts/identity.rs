//! Who this host is.

use std::fs;

/// What a node shows of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub hostname: String,
    pub kernel_release: String,
    pub architecture: String,
    pub os: String,
}

impl Identity {
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            os: fs::read_to_string("/etc/os-release")
                .ok()
                .and_then(|text| pretty_name(&text))
                .unwrap_or_else(|| "Linux".to_owned()),
        }
    }
}

/// The configured identity, else the machine id of systemd or D-Bus, else one made of the host's name.
pub fn machine_id(configured: &str) -> String {
    if !configured.is_empty() {
        return configured.to_owned();
    }
    ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        .find(|id| id.len() == 32)
        .unwrap_or_else(|| format!("host-{}", Identity::read().hostname))
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_identity_comes_first() {
        assert_eq!(machine_id("mine"), "mine");
        assert!(!machine_id("").is_empty());
    }

    #[test]
    fn the_system_is_called_by_its_own_name() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian 13\"\n").as_deref(), Some("Debian 13"));
        assert_eq!(pretty_name("ID=x"), None);
        assert!(!Identity::read().kernel_release.is_empty());
    }
}
