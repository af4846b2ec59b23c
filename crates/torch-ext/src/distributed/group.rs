//! A process group: the ranks of one launch, and what they do together.

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::ptr;

use tch::Tensor;

use super::launch::Launch;
use crate::error::{Error, Result};
use crate::ffi;

/// The file that `cargo xtask nccl` makes.
const NCCL_LIBRARY: &str = "libc10d_nccl.so";

/// The ranks that met: over Gloo for tensors on CPUs, over NCCL for those on GPUs once it is opened. All ranks must call the
/// same functions in the same order.
///
/// After the first error the group is dead: leave, and start all ranks again.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: *mut c_void,
    rank: usize,
    world: usize,
    // Names at the meeting place are used once: a rank that is behind must not read what a later use left.
    uses: Cell<u64>,
}

impl ProcessGroup {
    /// Meets the other ranks.
    ///
    /// # Errors
    /// [`Error::Join`] when not all came within the timeout.
    pub fn join(launch: &Launch) -> Result<Self> {
        let failed = |message: String| Error::Join {
            rank: launch.rank,
            world: launch.world,
            address: format!("{}:{}", launch.host, launch.port),
            message,
        };
        let host = CString::new(launch.host.as_str()).map_err(|e| failed(e.to_string()))?;
        let prefix = CString::new(format!("/laptop-diff/attempt_{}", launch.attempt)).expect("no NUL inside");
        let serve = !launch.agent_store && launch.rank == 0;
        let timeout = launch.timeout.as_millis().min(i64::MAX as u128) as i64;
        let mut raw = ptr::null_mut();
        // SAFETY: the strings live through the call, which copies them; `raw` is written before a null return.
        let text = unsafe {
            let (rank, world) = (launch.rank as i32, launch.world as i32);
            ffi::tx_join(host.as_ptr(), launch.port, serve.into(), rank, world, prefix.as_ptr(), timeout, &mut raw)
        };
        ffi::check(text).map_err(failed)?;
        Ok(Self { raw, rank: launch.rank, world: launch.world, uses: Cell::new(0) })
    }

    /// Opens NCCL for tensors on the GPU `device`, this rank's own. The library is searched beside the program, then by the
    /// loader; `cpp/nccl.cpp` is its source.
    ///
    /// # Errors
    /// [`Error::Nccl`] when the library, libtorch's CUDA library or the GPU is not there.
    pub fn open_nccl(&self, device: usize) -> Result<()> {
        let beside = std::env::current_exe().ok().map(|program| program.with_file_name(NCCL_LIBRARY)).filter(|path| path.exists());
        let path = beside.map_or(NCCL_LIBRARY.into(), |path| path.display().to_string());
        let failed = |message: String| Error::Nccl { rank: self.rank, device, message };
        let path = CString::new(path).map_err(|e| failed(e.to_string()))?;
        // SAFETY: the group is alive and its GPU tensors unused so far; the call copies the string.
        ffi::check(unsafe { ffi::tx_open_nccl(self.raw, path.as_ptr(), device as i32) }).map_err(failed)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    pub(crate) fn raw(&self) -> *mut c_void {
        self.raw
    }

    /// A number that all ranks get in the same order.
    pub(crate) fn use_number(&self) -> u64 {
        self.uses.replace(self.uses.get() + 1)
    }

    pub(crate) fn failed(&self, operation: &'static str) -> impl FnOnce(String) -> Error {
        let rank = self.rank;
        move |message| Error::Collective { rank, operation, message }
    }

    /// Replaces `tensor` by the sum over all ranks; every rank gets the same bits.
    ///
    /// # Errors
    /// [`Error::Collective`], also for a tensor that is not contiguous.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: group and tensor are alive; a tch tensor's pointer is an at::Tensor.
        ffi::check(unsafe { ffi::tx_all_reduce(self.raw, tensor.as_ptr().cast()) }).map_err(self.failed("a sum"))
    }

    /// Sums small numbers over all ranks, in place.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn sum(&self, values: &mut [f64]) -> Result<()> {
        let t = Tensor::from_slice(values);
        self.all_reduce(&t)?;
        t.copy_data(values, values.len());
        Ok(())
    }

    /// Replaces `tensor` by that of rank `root`.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        // SAFETY: as in `all_reduce`.
        ffi::check(unsafe { ffi::tx_broadcast(self.raw, tensor.as_ptr().cast(), root as i32) }).map_err(self.failed("a broadcast"))
    }

    /// Fills `whole` with every rank's `part`, in the order of ranks.
    ///
    /// # Shapes
    /// `part [n]`, the same `n` on every rank; `whole [world * n]`
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn all_gather(&self, whole: &Tensor, part: &Tensor) -> Result<()> {
        // SAFETY: as in `all_reduce`.
        ffi::check(unsafe { ffi::tx_all_gather(self.raw, whole.as_ptr().cast(), part.as_ptr().cast()) }).map_err(self.failed("a gathering"))
    }

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// [`Error::Collective`] when a rank does not come within the timeout.
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the group is alive.
        ffi::check(unsafe { ffi::tx_barrier(self.raw) }).map_err(self.failed("a barrier"))
    }

    /// Checks that every rank has the same `value` for `what`, through the meeting place and not through a collective: ranks
    /// that disagree about sizes must not start one.
    ///
    /// # Errors
    /// [`Error::Disagreement`] naming both values; [`Error::Collective`] when a rank does not answer.
    pub fn agree(&self, what: &str, value: &str) -> Result<()> {
        let number = self.use_number();
        let key = |rank: usize| CString::new(format!("agree/{number}/{rank}")).expect("no NUL inside");
        let own = key(self.rank);
        // SAFETY: group, key and bytes live through the call.
        ffi::check(unsafe { ffi::tx_set(self.raw, own.as_ptr(), value.as_ptr(), value.len()) }).map_err(self.failed("an agreement"))?;
        for other in (0..self.world).filter(|&r| r != self.rank) {
            let theirs = self.get(&key(other))?;
            if theirs != value {
                let (what, ours) = (what.to_string(), value.to_string());
                return Err(Error::Disagreement { rank: self.rank, other, what, ours, theirs });
            }
        }
        Ok(())
    }

    /// Work of the first rank alone, for which the others wait however long it takes, as no collective does: [`None`] is theirs. They
    /// learn when it fails, and a process that ends takes the meeting place with it.
    ///
    /// # Errors
    /// Those of `work` on the first rank; [`Error::Collective`] on the others when it failed or ended.
    pub fn first_alone<T, E: From<Error>>(&self, work: impl FnOnce() -> std::result::Result<T, E>) -> std::result::Result<Option<T>, E> {
        let key = CString::new(format!("alone/{}", self.use_number())).expect("no NUL inside");
        let operation = "the first rank's own work, which the others wait for,";
        if self.rank == 0 {
            let done = work();
            let told = if done.is_ok() { "done" } else { "failed" };
            // SAFETY: group, key and bytes live through the call.
            let set = ffi::check(unsafe { ffi::tx_set(self.raw, key.as_ptr(), told.as_ptr(), told.len()) });
            let done = done?;
            set.map_err(self.failed(operation))?;
            self.barrier()?;
            return Ok(Some(done));
        }
        // SAFETY: group and key live through the call.
        ffi::check(unsafe { ffi::tx_wait(self.raw, key.as_ptr()) }).map_err(self.failed(operation))?;
        if self.get(&key)? != "done" {
            return Err(self.failed(operation)("it ended with an error".into()).into());
        }
        // The first rank may be the meeting place: it stays until all have read.
        self.barrier()?;
        Ok(None)
    }

    fn get(&self, key: &CString) -> Result<String> {
        let (mut data, mut n) = (ptr::null_mut(), 0);
        // SAFETY: a null return means that `data` points to `n` bytes from malloc, which are released here.
        let text = unsafe { ffi::tx_get(self.raw, key.as_ptr(), &mut data, &mut n) };
        ffi::check(text).map_err(self.failed("an agreement"))?;
        // SAFETY: as above.
        let value = unsafe {
            let value = String::from_utf8_lossy(std::slice::from_raw_parts(data, n)).into_owned();
            libc::free(data.cast());
            value
        };
        Ok(value)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `tx_join` and is not used again; buckets borrow the group.
        unsafe { ffi::tx_leave(self.raw) }
    }
}
