// The blocks and threads of cuda_on_cpu.hpp: fibres, barriers, shuffles, launches.
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static char* dynamic_shared_memory;
extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

namespace fibres {
enum State { READY, AT_BLOCK, AT_WARP, DONE };
struct Fibre {  // begun once and kept: the next block is its next round
  char* stack;
  bool begun;
  jmp_buf place;  // where it goes on: swapcontext would ask the kernel at each switch
  State state;
  unsigned mask;  // the lanes that the warp's barrier names
  int vote;       // for __syncthreads_count and its like
  uint64_t slot;  // what a shuffle hands on
};
static const size_t STACK = 1 << 16;
static Fibre threads[1024];
static int size;  // threads of a block
static jmp_buf scheduler;
static void (*body)();
static int current;
static const char* problem;

static void hand_over(State state) {
  threads[current].state = state;
  if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
}
static void fail(const char* what) {  // the thread is never resumed
  problem = what;
  hand_over(DONE);
}
static void run_bodies() {
  for (;;) {
    body();
    hand_over(DONE);
  }
}
static void resume(Fibre& thread) {
  if (_setjmp(scheduler)) return;
  if (thread.begun) _longjmp(thread.place, 1);
  thread.begun = true;
  if (!thread.stack) thread.stack = (char*)malloc(STACK);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, run_bodies, 0);
  setcontext(&context);
}

static bool open_block_barrier() {
  for (int k = 0; k < size; ++k)
    if (threads[k].state == READY || threads[k].state == AT_WARP) return false;
  bool any = false;
  for (int k = 0; k < size; ++k)
    if (threads[k].state == AT_BLOCK) threads[k].state = READY, any = true;
  return any;
}
static bool open_warp_barrier(int first) {
  bool opened = false;
  for (int k = first; k < first + 32 && k < size; ++k) {
    if (threads[k].state != AT_WARP) continue;
    unsigned mask = threads[k].mask;
    bool all = mask >> (k - first) & 1;
    if (!all) problem = "a thread is not in the mask that it gives";
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      if (first + lane >= size || threads[first + lane].state == DONE) {
        problem = "a mask names a thread that is not there or has returned";
        return false;
      }
      auto& other = threads[first + lane];
      all = all && other.state == AT_WARP && other.mask == mask;
    }
    if (!all) continue;
    opened = true;
    for (int lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) threads[first + lane].state = READY;
  }
  return opened;
}

static void run_block(bool backwards) {
  for (int k = 0; k < size; ++k) threads[k].state = READY;
  for (;;) {
    for (int n = 0; n < size; ++n) {
      current = backwards ? size - 1 - n : n;
      if (threads[current].state != READY) continue;
      threadIdx.x = current % blockDim.x;
      threadIdx.y = current / blockDim.x % blockDim.y;
      threadIdx.z = current / blockDim.x / blockDim.y;
      resume(threads[current]);
      if (problem) return;
    }
    bool opened = open_block_barrier();
    for (int first = 0; first < size; first += 32) opened |= open_warp_barrier(first);
    if (problem) return;
    if (opened) continue;
    for (int k = 0; k < size; ++k)
      if (threads[k].state != DONE)
        problem = "threads wait at different barriers for ever";
    return;
  }
}

// dims: the grid, the block (x, y, z each), bytes of dynamic shared memory, backwards
static const char* launch(const long long* dims, void (*kernel)()) {
  gridDim = {(unsigned)dims[0], (unsigned)dims[1], (unsigned)dims[2]};
  blockDim = {(unsigned)dims[3], (unsigned)dims[4], (unsigned)dims[5]};
  size = dims[3] * dims[4] * dims[5];
  body = kernel;
  problem = nullptr;
  size_t fixed = __stop_shared_memory - __start_shared_memory;
  if (fixed + dims[6] > 227 * 1024) return "the shared memory exceeds 227 KiB";
  dynamic_shared_memory = (char*)aligned_alloc(128, (dims[6] / 128 + 1) * 128);
  for (unsigned z = 0, n = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x && !problem; ++x, ++n) {
        blockIdx = {x, y, z};  // nothing is left in shared memory: bytes of NaNs
        if (fixed) memset(__start_shared_memory, 0xff, fixed);
        memset(dynamic_shared_memory, 0xff, dims[6]);
        run_block((n + dims[7]) % 2);
      }
  free(dynamic_shared_memory);
  if (problem)  // nobody will resume them where they stand
    for (auto& thread : threads) thread.begun = false;
  return problem;
}

template <class... A> struct Call {
  static void (*kernel)(A...);
  static void** args;
  template <size_t... K> static void unpack(std::index_sequence<K...>) {
    kernel(*(std::remove_cv_t<A>*)args[K]...);
  }
  static void run() { unpack(std::index_sequence_for<A...>()); }
};
template <class... A> void (*Call<A...>::kernel)(A...);
template <class... A> void** Call<A...>::args;
template <class... A>
const char* call(void (*kernel)(A...), const long long* dims, void** args) {
  Call<A...>::kernel = kernel;
  Call<A...>::args = args;
  return launch(dims, Call<A...>::run);
}
template <class... A> int sizes(void (*)(A...), int* out) {
  int all[] = {(int)sizeof(A)..., 0};
  memcpy(out, all, sizeof...(A) * sizeof(int));
  return sizeof...(A);
}
}  // namespace fibres

extern "C" __attribute__((used)) void __ubsan_handle_type_mismatch_v1(void*, void*) {
  fibres::fail("an address is not a multiple of its type's alignment");
}

// ---- what needs the other threads ------------------------------------------------
inline void __syncthreads() { fibres::hand_over(fibres::AT_BLOCK); }
inline int __syncthreads_count(int vote) {
  fibres::threads[fibres::current].vote = vote != 0;
  __syncthreads();
  int count = 0;
  for (int k = 0; k < fibres::size; ++k)
    count += fibres::threads[k].state != fibres::DONE && fibres::threads[k].vote;
  __syncthreads();
  return count;
}
inline int __syncthreads_or(int vote) { return __syncthreads_count(vote) != 0; }
inline int __syncthreads_and(int vote) { return __syncthreads_count(!vote) == 0; }
inline void __syncwarp(unsigned mask = ~0u) {
  int lanes = fibres::size - fibres::current / 32 * 32;  // a last, shorter warp
  if (lanes < 32 && mask == ~0u) mask = (1u << lanes) - 1;
  fibres::threads[fibres::current].mask = mask;
  fibres::hand_over(fibres::AT_WARP);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T shuffle(unsigned mask, T value, int lane, int width, bool inside) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
  int first = fibres::current / 32 * 32, own = fibres::current - first;
  memcpy(&fibres::threads[fibres::current].slot, &value, sizeof value);
  fibres::threads[fibres::current].mask = mask;
  fibres::hand_over(fibres::AT_WARP);
  if (!inside) lane = own;
  if (!(mask >> lane & 1)) fibres::fail("a shuffle reads from a lane outside its mask");
  memcpy(&value, &fibres::threads[first + lane].slot, sizeof value);
  fibres::threads[fibres::current].mask = mask;
  fibres::hand_over(fibres::AT_WARP);
  return value;
}
#define OWN_LANE (fibres::current % 32)
#define PART (OWN_LANE / width * width)
template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return shuffle(mask, v, PART + lane % width, width, true);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  int lane = OWN_LANE ^ bits;
  return shuffle(mask, v, lane, width, lane < PART + width);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, int by, int width = 32) {
  return shuffle(mask, v, OWN_LANE + by, width, OWN_LANE + by < PART + width);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, int by, int width = 32) {
  return shuffle(mask, v, OWN_LANE - by, width, OWN_LANE - by >= PART);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  int first = fibres::current / 32 * 32;
  unsigned bits = 0;
  fibres::threads[fibres::current].vote = vote != 0;
  __syncwarp(mask);
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) bits |= (unsigned)fibres::threads[first + lane].vote << lane;
  __syncwarp(mask);
  return bits;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }
