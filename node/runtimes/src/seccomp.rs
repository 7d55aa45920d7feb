//! The system calls that a container may make under `RuntimeDefault`.
//!
//! The well-known default of the container world (moby `profiles/seccomp`, containerd `contrib/seccomp`): an allow
//! list, with more for each capability the container holds, and `clone` only without new namespaces. Names that the
//! machine's libseccomp does not know are skipped by runc. A change here can break or open up every container: hold
//! it against those two lists.

use serde_json::{Value, json};

const ALWAYS: &str = "\
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark \
fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer \
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat \
lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock \
mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall \
munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 \
pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat \
renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max \
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto \
set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid \
setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl \
shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat \
stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork \
vmsplice wait4 waitid waitpid write writev";

/// What a capability adds.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// What a processor (by its Rust name) has of its own, and the names libseccomp gives it and what it also runs.
const BY_ARCHITECTURE: &[(&str, &str, &[&str])] = &[
    ("x86_64", "arch_prctl modify_ldt", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    (
        "aarch64",
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    ),
    ("riscv64", "riscv_flush_icache riscv_hwprobe", &["SCMP_ARCH_RISCV64"]),
];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Personalities that change nothing dangerous: Linux, 32-bit uname, both, and asking.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Kernel crypto and the hypervisor's sockets reach past the container's namespaces.
const SOCKET_DOMAINS_DENIED: &[u64] = &[38, 40];
const ENOSYS: u64 = 38;
const EPERM: u64 = 1;

/// The profile for a container with these capabilities (`CAP_…`) on a processor (its Rust name).
pub fn default_profile(capabilities: &[String], architecture: &str) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut rules = vec![allow(ALWAYS), allow("process_vm_readv process_vm_writev ptrace")];
    let equal = |name: &str, value: u64| allow_if(name, json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]));
    rules.extend(PERSONALITIES.iter().map(|personality| equal("personality", *personality)));
    // runc takes several comparisons of one argument as alternatives, so what lies between the denied families is
    // listed one by one (opencontainers/runc#2735).
    let lowest = SOCKET_DOMAINS_DENIED[0];
    rules.push(allow_if("socket", json!([{"index": 0, "value": lowest, "op": "SCMP_CMP_LT"}])));
    let beyond = (lowest + 1..=45).filter(|domain| !SOCKET_DOMAINS_DENIED.contains(domain));
    rules.extend(beyond.map(|domain| equal("socket", domain)));
    rules.extend(BY_CAPABILITY.iter().filter(|(name, _)| has(name)).map(|(_, names)| allow(names)));
    if !has("CAP_SYS_ADMIN") {
        let masked = json!([{"index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(allow_if("clone", masked));
        // Its flags lie behind a pointer that no filter can follow; ENOSYS makes libc fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    let own = BY_ARCHITECTURE.iter().find(|(name, ..)| *name == architecture);
    rules.extend(own.map(|(_, names, _)| allow(names)));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": own.map_or(&[] as &[&str], |(.., architectures)| architectures),
        "syscalls": rules,
    })
}

fn allow(names: &str) -> Value {
    json!({"names": names.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW"})
}

fn allow_if(name: &str, args: Value) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether some rule without conditions allows `name`.
    fn allows(capabilities: &[&str], name: &str) -> bool {
        let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
        let profile = default_profile(&capabilities, "x86_64");
        profile["syscalls"].as_array().unwrap().iter().any(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule.get("args").is_none()
                && rule["names"].as_array().unwrap().iter().any(|n| n == name)
        })
    }

    #[test]
    fn what_is_allowed_follows_capabilities() {
        for (capabilities, name, expected) in [
            (&[][..], "read", true),
            (&[], "arch_prctl", true),
            (&[], "riscv_hwprobe", false),
            (&[], "mount", false),
            (&[], "unshare", false),
            (&[], "clone", false),
            (&[], "keyctl", false),
            (&[], "kexec_load", false),
            (&[], "socket", false),
            (&["CAP_SYS_ADMIN"], "mount", true),
            (&["CAP_SYS_ADMIN"], "clone", true),
            (&["CAP_SYS_CHROOT"], "chroot", true),
            (&["CAP_SYS_TIME"], "clock_settime", true),
        ] {
            assert_eq!(allows(capabilities, name), expected, "{name} with {capabilities:?}");
        }
    }

    #[test]
    fn clone_is_allowed_only_without_namespaces() {
        let profile = default_profile(&[], "aarch64");
        let rules = profile["syscalls"].as_array().unwrap();
        let clone = rules.iter().find(|rule| rule["names"][0] == "clone").unwrap();
        assert_eq!(clone["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
        assert_eq!(clone["args"][0]["value"], 2_114_060_288u64);
        assert!(rules.iter().any(|rule| rule["names"][0] == "clone3" && rule["errnoRet"] == 38));
        assert_eq!(profile["architectures"][0], "SCMP_ARCH_AARCH64");
    }

    #[test]
    fn no_name_is_listed_twice() {
        let mut names: Vec<_> = ALWAYS.split_whitespace().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(names.len() > 330, "{}", names.len());
    }
}
