//! Ends processes of this node's containers that containerd knows nothing of any more: a server or a containerd that was
//! killed in the middle of a start or a removal leaves a shim with its container, or a logger that waits for ever.
//! Ours are those that name this node's socket, containerd namespace (keyed to the data directory) or run directory on
//! their command line.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use containerd_client::services::v1::ListTasksRequest;

use super::keep::parent;
use super::{Inner, rpc};
use crate::private::killall::{logger_of, processes, shim_of};
use crate::private::process::ProcessMark;
use crate::runtime::{ContainerId, RuntimeError};

/// How long what a killed server asked containerd for may still take.
const SETTLE: Duration = Duration::from_secs(10);

/// A process that works for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Helper {
    process: ProcessMark,
    container: String,
}

impl Inner {
    /// Ends what is left now and is still there, without a task, after a while; how many processes.
    pub(super) async fn end_leftovers(&self) -> Result<usize, RuntimeError> {
        let first = self.leftovers().await?;
        if first.is_empty() {
            return Ok(0);
        }
        tokio::time::sleep(SETTLE).await;
        let second = self.leftovers().await?;
        let left: Vec<&Helper> = second.iter().filter(|helper| first.contains(helper)).collect();
        for helper in &left {
            tracing::warn!(pid = helper.process.pid, container = %helper.container, "ending what is left of a container");
            // The container first: without its shim it would be anybody's.
            let children = processes().into_iter().filter(|pid| parent(*pid) == helper.process.pid.try_into().ok());
            let children = children.filter_map(|pid| ProcessMark::of(pid.try_into().ok()?).ok());
            for process in children.chain([helper.process]) {
                let ended = process.kill_and_wait().await;
                ended.map_err(|e| RuntimeError::host(format!("end process {}", process.pid), e))?;
            }
        }
        Ok(left.len())
    }

    /// Processes first, tasks after: one that comes meanwhile is not seen.
    async fn leftovers(&self) -> Result<Vec<Helper>, RuntimeError> {
        let helpers: Vec<Helper> = processes().into_iter().filter_map(|pid| self.helper(pid)).collect();
        let request = self.rpc.request(ListTasksRequest { filter: String::new() });
        let tasks = rpc::answer("list tasks", self.rpc.tasks().list(request).await)?.tasks;
        let tasks: BTreeSet<String> = tasks.into_iter().map(|task| task.id).collect();
        Ok(without_task(helpers, &tasks, &self.starting.lock()))
    }

    fn helper(&self, pid: u32) -> Option<Helper> {
        let (folder, settings) = (self.settings.layout().attach(), &self.settings);
        #[allow(clippy::disallowed_methods, reason = "a shell: /proc")]
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let container = shim_of(&line, &settings.socket, &settings.namespace).or_else(|| logger_of(&line, &folder))?;
        Some(Helper { process: ProcessMark::of(pid.try_into().ok()?).ok()?, container })
    }
}

fn without_task(helpers: Vec<Helper>, tasks: &BTreeSet<String>, starting: &HashSet<ContainerId>) -> Vec<Helper> {
    let is_starting = |id: &str| starting.iter().any(|starting| starting.as_str() == id);
    let mut helpers = helpers;
    helpers.retain(|helper| !tasks.contains(&helper.container) && !is_starting(&helper.container));
    helpers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::PodUid;

    #[test]
    fn what_has_a_task_or_will_have_one_stays() {
        let id = |name: &str| ContainerId::derive(&PodUid::new("u").unwrap(), name, 0);
        let process = ProcessMark::parse("7 7").unwrap();
        let helper = |name: &str| Helper { process, container: id(name).to_string() };
        let all = vec![helper("runs"), helper("starts"), helper("left")];
        let left = without_task(all, &[id("runs").to_string()].into(), &[id("starts")].into());
        assert_eq!(left, [helper("left")]);
    }
}
