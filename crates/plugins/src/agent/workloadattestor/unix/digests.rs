//! SHA-256 of programs, remembered as long as the file does not change.
//!
//! A file counts as the same while device, inode, size and both change times are. The kernel's clock
//! behind those ticks in milliseconds, so a file that changed a moment ago could change again without
//! a new time: its digest is not remembered. Callers that run the same file at the same time wait for one
//! of them to hash it; whoever does not find it remembered then hashes it itself.
//!
//! A user can have programs that take minutes to hash. So each has as many files hashed at once as there are
//! processors, its other callers wait for their turn, and a file is left as soon as the process that runs it
//! has ended and nobody waits for it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use plugin::PluginError;
use runtime::clock::Clock;
use runtime::keyed::Keyed;
use runtime::peer::Process;
use spiffe::UnixSecs;
use tokio::sync::{OwnedMutexGuard, Semaphore};

/// How many digests are remembered. When there are more, all are forgotten: a node runs few programs.
const REMEMBERED: usize = 1024;

/// How long a file must have been left alone for its digest to be remembered.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The remembered digests.
pub(super) struct Digests {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Stamp, String>>,
    /// Held by who hashes a file.
    turns: Keyed<Stamp, Turn>,
    /// Places for the files of one user that are hashed.
    places: Keyed<u32, Semaphore>,
}

type Turn = tokio::sync::Mutex<()>;

impl Digests {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, known: Mutex::default(), turns: Keyed::default(), places: Keyed::default() }
    }

    /// The digest in hex of `program`, which this process of this user runs. A file above `limit` bytes is
    /// an error; 0 is no limit.
    pub(super) async fn digest(
        this: &Arc<Self>,
        program: File,
        process: &Process,
        user: u32,
        limit: u64,
    ) -> Result<String, PluginError> {
        let failed = |error: io::Error| PluginError::internal(format!("SHA256 digest: {error}"));
        let before = program.metadata().map_err(failed)?;
        if limit > 0 && before.len() > limit {
            let (size, pid) = (before.len(), process.pid());
            return Err(PluginError::internal(format!(
                "SHA256 digest: workload /proc/{pid}/exe exceeds size limit ({size} > {limit})"
            )));
        }
        let stamp = Stamp::of(&before);
        if let Some(digest) = this.remembered(&stamp) {
            return Ok(digest);
        }
        // First the place: who waits for one must not keep a turn from those that have theirs.
        let places = this.places.get_or_insert_with(user, || Semaphore::new(processors()));
        let place = places.acquire_owned().await;
        let turn = this.turns.get_or_insert_with(stamp, Turn::default);
        let guard = Arc::clone(&turn).lock_owned().await;
        if let Some(digest) = this.remembered(&stamp) {
            return Ok(digest);
        }
        let runner = process.handle().map_err(failed)?;
        let this = Arc::clone(this);
        let work = move || {
            let _place = place;
            let is_of_use = || is_awaited(&guard) || runner.is_alive();
            let digest = hash(&program, is_of_use)?;
            let after = Stamp::of(&program.metadata()?);
            this.remember(stamp, after, &digest);
            Ok(digest)
        };
        let hashed = tokio::task::spawn_blocking(work).await;
        drop(turn);
        hashed.map_err(|_| PluginError::internal("SHA256 digest: interrupted"))?.map_err(failed)
    }

    fn remembered(&self, stamp: &Stamp) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(stamp).cloned()
    }

    fn remember(&self, before: Stamp, after: Stamp, digest: &str) {
        let now = UnixSecs::from(self.clock.now());
        let settled_for = now.since(UnixSecs(after.changed.0));
        if before != after || settled_for < SETTLED.as_secs().cast_signed() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(after, digest.to_owned());
    }
}

/// Whether anybody but who holds its turn waits for a file to be hashed.
fn is_awaited(turn: &OwnedMutexGuard<()>) -> bool {
    Arc::strong_count(OwnedMutexGuard::mutex(turn)) > 1
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn hash(mut file: &File, is_of_use: impl Fn() -> bool) -> io::Result<String> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        if !is_of_use() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"));
        }
        context.update(chunk);
    }
    Ok(crate::shared::hex(context.finish().as_ref()))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use runtime::clock::{ManualClock, SystemClock};

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn own() -> Process {
        Process::open(std::process::id().cast_signed()).unwrap()
    }

    #[tokio::test]
    async fn w13_digests_are_remembered_once_a_file_has_settled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, "").unwrap();
        let open = || File::open(&path).unwrap();

        let soon = Arc::new(Digests::new(Arc::new(SystemClock)));
        assert_eq!(Digests::digest(&soon, open(), &own(), 0, 0).await.unwrap(), EMPTY);
        assert_eq!(soon.known.lock().unwrap().len(), 0);

        let later: SystemTime = SystemClock.now() + Duration::from_secs(60);
        let late = Arc::new(Digests::new(Arc::new(ManualClock::new(later))));
        assert_eq!(Digests::digest(&late, open(), &own(), 0, 0).await.unwrap(), EMPTY);
        assert_eq!(late.known.lock().unwrap().len(), 1);

        std::fs::write(&path, "other").unwrap();
        assert_ne!(Digests::digest(&late, open(), &own(), 0, 0).await.unwrap(), EMPTY);
    }

    /// How many bytes this process has read.
    fn read_so_far() -> u64 {
        let counters = std::fs::read_to_string("/proc/self/io").unwrap();
        counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn w13_callers_that_run_one_program_at_the_same_time_have_it_hashed_once() {
        const SIZE: u64 = 32 << 20;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let later = SystemClock.now() + Duration::from_secs(60);
        let digests = Arc::new(Digests::new(Arc::new(ManualClock::new(later))));
        let (own, before) = (own(), read_so_far());

        // Some go away before they are told.
        for _ in 0..20 {
            let call = Digests::digest(&digests, File::open(&path).unwrap(), &own, 0, 0);
            tokio::time::timeout(Duration::from_millis(1), call).await.ok();
        }
        let calls = (0..200)
            .map(async |_| Digests::digest(&digests, File::open(&path).unwrap(), &own, 0, 0).await.unwrap());
        let mut found = futures::future::join_all(calls).await;
        found.dedup();

        assert_eq!(found.len(), 1);
        let read = read_so_far() - before;
        assert!(read < 2 * SIZE, "{read} bytes read for one file of {SIZE}");
    }

    #[tokio::test]
    async fn w13_another_file_at_the_same_place_is_hashed_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let later = SystemClock.now() + Duration::from_secs(60);
        let digests = Arc::new(Digests::new(Arc::new(ManualClock::new(later))));
        let digest = async |text: &str| {
            // Of the same size, and by its date as old.
            std::fs::remove_file(&path).ok();
            std::fs::write(&path, text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            Digests::digest(&digests, File::open(&path).unwrap(), &own(), 0, 0).await.unwrap()
        };

        let (one, other) = (digest("one").await, digest("two").await);

        assert_ne!(one, other);
        assert_eq!(digests.known.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn w13_a_program_above_the_limit_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, "12345").unwrap();
        let digests = Arc::new(Digests::new(Arc::new(SystemClock)));
        let own = own();

        let error = Digests::digest(&digests, File::open(&path).unwrap(), &own, 0, 4).await.unwrap_err();
        let pid = own.pid();
        let told = format!("SHA256 digest: workload /proc/{pid}/exe exceeds size limit (5 > 4)");
        assert_eq!(error.message, told);
        Digests::digest(&digests, File::open(&path).unwrap(), &own, 0, 5).await.unwrap();
    }

    /// A file of which it takes minutes to read all.
    fn endless(directory: &tempfile::TempDir, name: &str) -> File {
        let path = directory.path().join(name);
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        File::open(path).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn r00_a_file_is_left_when_nobody_waits_and_who_runs_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let digests = Arc::new(Digests::new(Arc::new(SystemClock)));
        let mut runner = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(runner.id().cast_signed()).unwrap();
        let places = digests.places.get_or_insert_with(7, || Semaphore::new(1));

        let call = Digests::digest(&digests, endless(&directory, "large"), &process, 7, 0);
        tokio::time::timeout(Duration::from_millis(20), call).await.unwrap_err();
        assert_eq!(places.available_permits(), 0, "who runs it may call again");
        runner.kill().unwrap();
        runner.wait().unwrap();

        let left = tokio::time::timeout(Duration::from_secs(20), places.acquire());
        drop(left.await.expect("it is left").unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn r00_files_of_one_user_that_take_for_ever_hold_up_no_other_user() {
        let directory = tempfile::tempdir().unwrap();
        let digests = Arc::new(Digests::new(Arc::new(SystemClock)));
        let mut runner = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(runner.id().cast_signed()).unwrap();
        let digest = |user, name: &str, size| {
            let file = endless(&directory, name);
            File::options().write(true).open(directory.path().join(name)).unwrap().set_len(size).unwrap();
            Digests::digest(&digests, file, &process, user, 0)
        };

        let many = (0..processors() + 1).map(|number| digest(7, &number.to_string(), 1 << 40));
        let many = futures::future::join_all(many);
        let one = tokio::time::timeout(Duration::from_secs(20), digest(8, "small", 0));
        let digest_of_one = tokio::select! {
            _ = many => panic!("a terabyte was read"),
            one = one => one.expect("it is not held up").unwrap(),
        };

        assert_eq!(digest_of_one, EMPTY);
        let places = digests.places.get_or_insert_with(7, || Semaphore::new(processors()));
        assert_eq!(places.available_permits(), 0);
        runner.kill().unwrap();
        runner.wait().unwrap();
        // Each ends, with it the places that it took.
        let all = places.acquire_many(u32::try_from(processors()).unwrap());
        let all = tokio::time::timeout(Duration::from_secs(20), all).await;
        drop(all.expect("all are left").unwrap());
    }
}
