//! What a process knows of its rank when it starts, in torchrun's terms.

use std::time::Duration;

use crate::error::{Error, Result};

/// Seconds that a rank waits for the others, unless told otherwise: long enough for a checkpoint of SDXL on a slow disk.
const TIMEOUT: Duration = Duration::from_secs(600);

/// One rank's place in a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// This rank, 0 to `world - 1`.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Number of this rank on its machine: which GPU it takes.
    pub local_rank: usize,
    /// Name of the machine where the ranks meet.
    pub host: String,
    /// Port where they meet.
    pub port: u16,
    /// How often the ranks were started again; ranks of different attempts never meet.
    pub attempt: u64,
    /// Whether torchrun's agent holds the meeting place; otherwise rank 0 does.
    pub agent_store: bool,
    /// How long to wait for the others, in joining and in every collective.
    pub timeout: Duration,
}

impl Launch {
    /// Reads torchrun's variables: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`,
    /// `TORCHELASTIC_RESTART_COUNT`, `TORCHELASTIC_USE_AGENT_STORE`; and `LAPTOP_DIFF_TIMEOUT`, in seconds. `None` without
    /// `WORLD_SIZE`: a program that runs alone.
    ///
    /// # Errors
    /// [`Error::Launch`] naming the variable that is missing or makes no sense.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        if var("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let bad = |name: &str, expected: &str, got: Option<String>| Error::Launch {
            name: name.into(),
            expected: expected.into(),
            got: got.unwrap_or_else(|| "nothing".into()),
        };
        let number = |name: &str, default: Option<u64>| match (var(name), default) {
            (None, Some(default)) => Ok(default),
            (given, _) => {
                given.as_deref().and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| bad(name, "a number of 0 or more", given.clone()))
            }
        };
        let world = number("WORLD_SIZE", None)?;
        let rank = number("RANK", None)?;
        if world == 0 {
            return Err(bad("WORLD_SIZE", "at least 1", Some("0".into())));
        }
        if rank >= world {
            return Err(bad("RANK", &format!("0 to {}", world - 1), Some(rank.to_string())));
        }
        let port = number("MASTER_PORT", None)?;
        let timeout = number("LAPTOP_DIFF_TIMEOUT", Some(TIMEOUT.as_secs()))?.max(1);
        Ok(Some(Self {
            rank: rank as usize,
            world: world as usize,
            local_rank: number("LOCAL_RANK", Some(rank))? as usize,
            host: var("MASTER_ADDR").ok_or_else(|| bad("MASTER_ADDR", "the name of rank 0's machine", None))?,
            port: u16::try_from(port).map_err(|_| bad("MASTER_PORT", "a port, 1 to 65535", Some(port.to_string())))?,
            attempt: number("TORCHELASTIC_RESTART_COUNT", Some(0))?,
            agent_store: var("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True"),
            timeout: Duration::from_secs(timeout),
        }))
    }

    /// Whether this rank writes files and talks to the user.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(vars: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn torchruns_variables_are_read_and_wrong_ones_named() {
        assert_eq!(launch(&[]).unwrap(), None);
        let given = [("WORLD_SIZE", "4"), ("RANK", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        let found = launch(&given).unwrap().unwrap();
        assert_eq!((found.rank, found.world, found.local_rank, found.host.as_str(), found.port), (2, 4, 0, "node0", 29500));
        assert!(!found.agent_store && found.attempt == 0);
        for (name, value) in [("RANK", "4"), ("RANK", "x"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "70000")] {
            let changed: Vec<_> = given.iter().map(|&(n, v)| (n, if n == name { value } else { v })).collect();
            let err = launch(&changed).unwrap_err().to_string();
            assert!(err.contains(name) && err.contains(value), "{err}");
        }
        let err = launch(&given[..3]).unwrap_err().to_string();
        assert!(err.contains("MASTER_"), "{err}");
    }
}
