//! A plan, compiled to what the child walks: sources opened, strings terminated, namespaces pinned.

mod root;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::ids::IdRange;
use super::launch::{LaunchError, Launcher};
use super::plan::{ExecPlan, Identity, LaunchPlan, ProcessPlan, Space};
use super::stdio::Stdio;
use super::user_namespace;
use crate::cgroup::Cgroup;
use crate::config::NetworkNs;
use crate::sys::child::{Program, UserNamespace};
use crate::sys::reaper;

/// What one clone needs; everything borrowed by the program by number or pointer is owned here.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) program: Program,
    /// Flags of clone3: the new namespaces.
    pub(super) flags: u64,
    /// A pidfd whose process namespace the child is born into.
    pub(super) process_namespace: Option<OwnedFd>,
    pub(super) new_time_namespace: bool,
    pub(super) keep: Vec<OwnedFd>,
    /// What `program.argv` and `program.envp` point into.
    _strings: Vec<CString>,
    pub(super) op_names: Vec<String>,
    pub(super) sysctl_names: Vec<String>,
    pub(super) limit_names: Vec<String>,
    pub(super) directory: String,
    pub(super) command: String,
}

pub(super) struct Compiler<'a> {
    launcher: &'a Launcher,
    keep: Vec<OwnedFd>,
    /// The container's ids and its user namespace, where it has one of its own.
    own_ids: Option<(IdRange, RawFd)>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(launcher: &'a Launcher) -> Self {
        Self { launcher, keep: Vec::new(), own_ids: None }
    }

    /// A descriptor that lives until the clone, by its number.
    fn keep(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.keep.push(fd);
        number
    }

    pub(super) fn container(
        mut self,
        plan: &LaunchPlan,
        cgroup: &Cgroup,
        stdio: Stdio,
    ) -> Result<Compiled, LaunchError> {
        let mut compiled = self.process(&plan.id, &plan.process, stdio, plan.init)?;
        let spaces = &plan.namespaces;
        compiled.flags |= libc::CLONE_NEWNS as u64;
        match &spaces.network {
            NetworkNs::None => {
                compiled.flags |= libc::CLONE_NEWNET as u64;
                compiled.program.loopback = true;
            }
            NetworkNs::Host => {}
            NetworkNs::Path(path) => {
                let file = File::open(path).map_err(|source| open_error("open the network namespace", path, source))?;
                let fd = self.keep(file.into());
                compiled.program.joins.push((fd, libc::CLONE_NEWNET));
            }
        }
        for (space, kind) in [(spaces.ipc, libc::CLONE_NEWIPC), (spaces.uts, libc::CLONE_NEWUTS)] {
            match space {
                Space::New => compiled.flags |= kind as u64,
                Space::Host => {}
                Space::Of(identity) => {
                    let fd = self.keep(pidfd(identity)?);
                    compiled.program.joins.push((fd, kind));
                }
            }
        }
        match spaces.pid {
            Space::New => compiled.flags |= libc::CLONE_NEWPID as u64,
            Space::Host => {}
            Space::Of(identity) => compiled.process_namespace = Some(pidfd(identity)?),
        }
        match spaces.cgroup {
            Space::New => compiled.program.new_cgroup_namespace = true,
            Space::Host => {}
            Space::Of(identity) => {
                let fd = self.keep(pidfd(identity)?);
                compiled.program.joins.push((fd, libc::CLONE_NEWCGROUP));
            }
        }
        compiled.new_time_namespace = true;
        compiled.program.hostname = plan.hostname.as_deref().map(|name| text("the host name", name)).transpose()?;
        compiled.program.domainname =
            plan.domainname.as_deref().map(|name| text("the domain name", name)).transpose()?;
        if let Some(ids) = plan.ids {
            let descriptor = self.keep(user_namespace::make(ids)?);
            self.own_ids = Some((ids, descriptor));
            compiled.program.user_namespace = Some(UserNamespace { descriptor, first: ids.first });
        }
        let (root, op_names) = self.root(plan, cgroup)?;
        compiled.program.root = Some(root);
        compiled.op_names = op_names;
        for (name, value, optional) in &plan.sysctls {
            let path = format!("sys/{}", name.replace('.', "/"));
            compiled.program.sysctls.push((
                text("a kernel parameter", &path)?,
                text("a kernel parameter", value)?,
                *optional,
            ));
            compiled.sysctl_names.push(name.clone());
        }
        self.finish(compiled, cgroup)
    }

    pub(super) fn exec(mut self, plan: &ExecPlan, cgroup: &Cgroup, stdio: Stdio) -> Result<Compiled, LaunchError> {
        let mut compiled = self.process(&plan.id, &plan.process, stdio, false)?;
        let init = pidfd(plan.container)?;
        // All that init has; those that it shares with us are joined too, which changes nothing. Its user namespace comes last.
        let mut kinds =
            libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
        if Path::new("/proc/self/ns/time").exists() {
            kinds |= libc::CLONE_NEWTIME;
        }
        let fd = self.keep(init);
        compiled.program.joins.push((fd, kinds));
        compiled.program.user_namespace = plan.ids.map(|ids| UserNamespace { descriptor: fd, first: ids.first });
        compiled.process_namespace = Some(pidfd(plan.container)?);
        self.finish(compiled, cgroup)
    }

    fn finish(mut self, mut compiled: Compiled, cgroup: &Cgroup) -> Result<Compiled, LaunchError> {
        for group in cgroup.v1_tasks()? {
            compiled.program.groups_to_enter.push(self.keep(group));
        }
        compiled.keep.append(&mut self.keep);
        Ok(compiled)
    }

    fn process(&mut self, id: &str, plan: &ProcessPlan, stdio: Stdio, init: bool) -> Result<Compiled, LaunchError> {
        let mut argv = texts("an argument", &plan.argv)?;
        if init {
            argv.splice(0..0, reaper::ARGUMENTS.map(CString::from));
        }
        let env = texts("the environment", &plan.env)?;
        let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let (argv_pointers, envp) = (pointers(&argv), pointers(&env));
        let (streams, terminal) = match stdio {
            Stdio::Terminal { rows, columns } => ([-1; 3], Some((rows, columns))),
            Stdio::Streams { stdin, stdout, stderr } => {
                ([stdin, stdout, stderr].map(|fd| fd.map_or(-1, |fd| self.keep(fd))), None)
            }
        };
        let short = id.get(..12).unwrap_or(id);
        let program = Program {
            status: -1,
            groups_to_enter: Vec::new(),
            joins: Vec::new(),
            new_cgroup_namespace: false,
            user_namespace: None,
            hostname: None,
            domainname: None,
            loopback: false,
            root: None,
            sysctls: Vec::new(),
            oom_score: text("oom_score_adj", &plan.oom_score_adj.to_string())?,
            keyring: text("the container's id", &format!("_ses.{short}"))?,
            limits: plan.limits.clone(),
            terminal,
            streams,
            null: self.launcher.null.as_raw_fd(),
            directory: text("the working directory", &plan.cwd)?,
            uid: plan.uid,
            gid: plan.gid,
            groups: plan.groups.clone(),
            capabilities: plan.capabilities,
            last_capability: self.launcher.last_capability,
            no_new_privileges: plan.no_new_privileges,
            filter: plan.filter.clone(),
            reaper: init.then(|| self.launcher.executable.as_raw_fd()),
            candidates: texts("the command", &plan.candidates)?,
            argv: argv_pointers,
            envp,
        };
        Ok(Compiled {
            program,
            flags: 0,
            process_namespace: None,
            new_time_namespace: false,
            keep: Vec::new(),
            _strings: argv.into_iter().chain(env).collect(),
            op_names: Vec::new(),
            sysctl_names: Vec::new(),
            limit_names: plan.limits.iter().map(|(resource, ..)| super::limits::name(*resource).to_owned()).collect(),
            directory: plan.cwd.clone(),
            command: plan.argv.first().cloned().unwrap_or_default(),
        })
    }
}

fn pidfd(identity: Identity) -> Result<OwnedFd, LaunchError> {
    identity.open().ok_or(LaunchError::Gone { pid: identity.pid })
}

fn open_error(action: &'static str, path: &Path, source: impl Into<io::Error>) -> LaunchError {
    LaunchError::Open { action, path: path.to_owned(), source: source.into() }
}

fn text(what: &str, value: &str) -> Result<CString, LaunchError> {
    CString::new(value).map_err(|_| LaunchError::Nul { what: what.to_owned() })
}

fn texts(what: &str, values: &[String]) -> Result<Vec<CString>, LaunchError> {
    values.iter().map(|value| text(what, value)).collect()
}
