// Fibers, the scheduler, barriers and warp collectives.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "runtime.h"

#if !defined(__x86_64__)
#error "the fiber switch is written for x86-64"
#endif

namespace emu {

Place now;
Block block;
Fiber* current = nullptr;
Options options;
Counters counters;
std::string last_error;

namespace {
constexpr size_t kStack = 64 << 10;
constexpr size_t kStride = kStack + 4096 + 640;  // 640: the hot stack tops fall into different cache sets

void* main_sp = nullptr;
char* stacks = nullptr;
const std::function<void()>* body = nullptr;
uint64_t rng = 1;
int last_rank = -1;

// rdi: where to keep the old stack pointer, rsi: the new one. Callee-saved registers travel on the stack.
__attribute__((naked, noinline)) void switch_stack(void**, void*) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

uint64_t next_random() {
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng;
}

bool is_random() { return options.schedule == Schedule::random; }
// Lanes leave a collective one by one in any order, so that other warps slip in between.
bool yields() { return options.schedule == Schedule::lockstep || (is_random() && (options.seed & 1)); }

void make_ready(int warp, unsigned lanes) {
  Warp& w = block.warps[warp];
  w.ready |= lanes;
  block.ready_ranks |= 1u << w.rank;
}

int pick_lane(unsigned ready) {
  if (options.schedule == Schedule::reversed) return 31 - __builtin_clz(ready);
  if (!is_random() || !(options.seed & 1)) return __builtin_ctz(ready);
  const unsigned by = next_random() & 31;
  const unsigned turned = by ? (ready >> by | ready << (32 - by)) : ready;
  return (__builtin_ctz(turned) + by) & 31;
}

Fiber* take_next() {  // by default the first-ranked warp runs ahead of the others as far as barriers let it
  int rank = __builtin_ctz(block.ready_ranks);
  if (options.schedule == Schedule::lockstep) {
    const uint32_t later = last_rank < 31 ? block.ready_ranks & (~0u << (last_rank + 1)) : 0;
    if (later) rank = __builtin_ctz(later);
  }
  last_rank = rank;
  Warp& w = block.warps[block.by_rank[rank]];
  const int lane = pick_lane(w.ready);
  w.ready &= ~(1u << lane);
  if (!w.ready) block.ready_ranks &= ~(1u << rank);
  return &block.fibers[block.by_rank[rank] * 32 + lane];
}

void rank_warps() {  // only while no fiber is ready
  const int n = static_cast<int>(block.warps.size());
  for (int i = 0; i < n; ++i) block.by_rank[i] = options.schedule == Schedule::reversed ? n - 1 - i : i;
  if (is_random())
    for (int i = n - 1; i > 0; --i) std::swap(block.by_rank[i], block.by_rank[next_random() % (i + 1)]);
  for (int i = 0; i < n; ++i) block.warps[block.by_rank[i]].rank = i;
}

void enter(Fiber* f) {
  current = f;
  const unsigned id = f->id, dx = now.block_dim.x, dy = now.block_dim.y;
  now.thread = {id % dx, id / dx % dy, id / (dx * dy)};
  ++counters.switches;
}

[[noreturn]] void leave_to_main() {
  void* unused;
  switch_stack(&unused, main_sp);
  __builtin_unreachable();
}

void run_next(void** save) {
  if (!block.ready_ranks) {
    if (!block.alive) leave_to_main();
    std::string m = "deadlock: " + std::to_string(block.waiting) + " threads wait at __syncthreads";
    for (size_t w = 0; w < block.warps.size(); ++w)
      for (const Meeting& s : block.warps[w].meeting)
        if (s.arrived) m += "; " + std::to_string(s.arrived) + " lanes of warp " + std::to_string(w) + " at a collective";
    fail(m);
  }
  Fiber* next = take_next();
  if (next == current && next->alive) return;
  enter(next);
  switch_stack(save, next->sp);
}

void release_barrier() {
  if (block.alive != static_cast<int>(block.fibers.size()))
    fail("__syncthreads after a part of the block has exited");
  ++counters.barriers;
  ++block.epoch;
  block.waiting = 0;
  for (Warp& w : block.warps) flush_banks(w);
  if (!block.ready_ranks && is_random()) rank_warps();
  for (size_t w = 0; w < block.warps.size(); ++w)
    if (unsigned lanes = block.warps[w].at_barrier) {
      block.warps[w].at_barrier = 0;
      make_ready(static_cast<int>(w), lanes);
    }
}

void fiber_main() {
  (*body)();
  Fiber& f = *current;
  Warp& w = block.warps[f.warp];
  if (!f.open.empty() || !f.groups.empty()) fail("a thread exits with cp.async copies it has not waited for");
  f.alive = false;
  w.alive &= ~(1u << f.lane);
  --block.alive;
  for (const Meeting& s : w.meeting)
    if (s.arrived && (s.mask >> f.lane & 1)) fail("a lane exits while others of its warp wait for it at a collective");
  if (!w.alive) flush_banks(w);
  if (block.waiting && block.waiting == block.alive) release_barrier();
  void* unused;
  run_next(&unused);
  __builtin_unreachable();
}

void run_block() {
  const int n = static_cast<int>(block.fibers.size());
  block.alive = n;
  block.waiting = 0;
  block.ready_ranks = 0;
  ++block.epoch;
  last_rank = -1;
  block.warps.assign((n + 31) / 32, Warp{});
  block.by_rank.resize(block.warps.size());
  rank_warps();
  std::memset(block.smem, 0xff, block.smem_bytes);  // 0xffff... is NaN in fp16, bf16 and fp32
  check_reset(false);
  for (int i = 0; i < n; ++i) {
    Fiber& f = block.fibers[i];
    f.id = i;
    f.lane = i & 31;
    f.warp = i >> 5;
    f.alive = true;
    f.groups.clear();
    f.open.clear();
    f.log.clear();
    block.warps[f.warp].alive |= 1u << f.lane;
    void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stacks + i * kStride + 4096 + kStack) & ~uintptr_t{63});
    *--sp = nullptr;  // keeps the stack aligned as after a call
    *--sp = reinterpret_cast<void*>(fiber_main);
    for (int r = 0; r < 6; ++r) *--sp = nullptr;
    f.sp = sp;
    make_ready(f.warp, 1u << f.lane);
  }
  current = nullptr;
  Fiber* first = take_next();
  enter(first);
  switch_stack(&main_sp, first->sp);
  current = nullptr;
}
}  // namespace

void fail(const std::string& message) {
  char where[160];
  std::snprintf(where, sizeof where, " [block %u,%u,%u thread %d]", now.block.x, now.block.y, now.block.z,
                current ? current->id : -1);
  block.error = message + where;
  leave_to_main();
}

void syncthreads(const void* site) {
  if (block.waiting && block.barrier_site != site)
    fail("__syncthreads divergence: threads of the block are at different barriers");
  block.barrier_site = site;
  block.warps[current->warp].at_barrier |= 1u << current->lane;
  if (++block.waiting == block.alive) release_barrier();
  run_next(&current->sp);
}

void collective(int kind, unsigned mask, void* arg, Op op) {
  Warp& w = block.warps[current->warp];
  if (!(mask >> current->lane & 1)) fail("warp collective: the calling lane is not in its mask");
  if ((mask & w.alive) != mask) fail("warp collective: a lane of the mask has exited");
  Meeting *mine = nullptr, *unused = nullptr;
  for (Meeting& s : w.meeting) {
    if (!s.arrived) {
      if (!unused) unused = &s;
    } else if (s.mask == mask) {
      mine = &s;
    } else if (s.mask & mask) {
      fail("warp collective: lanes of a warp are at collectives with overlapping masks");
    }
  }
  if (!mine) {
    if (!unused) fail("warp collective: too many masks at once");
    mine = unused;
    mine->kind = kind;
    mine->mask = mask;
    std::memset(mine->arg, 0, sizeof mine->arg);
  } else if (mine->kind != kind) {
    fail("warp collective: lanes of a warp are at different collectives");
  }
  mine->arg[current->lane] = arg;
  if (++mine->arrived == __builtin_popcount(mask)) {
    mine->arrived = 0;
    if (options.banks) flush_banks(w);
    op(mine->arg);
    const unsigned self = 1u << current->lane;
    if (mask & ~self) make_ready(current->warp, mask & ~self);
    if (!yields()) return;
    make_ready(current->warp, self);
  }
  run_next(&current->sp);
}

std::string launch(dim3 grid, dim3 threads, size_t smem, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  const size_t n = static_cast<size_t>(threads.x) * threads.y * threads.z;
  if (n == 0 || n > 1024) return "launch: a block has 1 to 1024 threads";
  const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "launch: bad grid";
  if (counters.blocks == 0) counters.blocks = blocks, counters.threads = n, counters.shared_bytes = smem;
  body = &kernel;
  rng = options.seed * 0x9e3779b97f4a7c15ull + 1;
  auto* mem = static_cast<unsigned char*>(std::aligned_alloc(1024, (smem + 1023) / 1024 * 1024 + 2 * kSmemGuard));
  std::memset(mem, 0xff, smem + 2 * kSmemGuard);
  block.smem = mem + kSmemGuard;
  block.smem_bytes = smem;
  block.fibers.assign(n, Fiber{});
  block.error.clear();
  now = {{}, {}, threads, grid, block.smem};
  check_reset(true);
  const size_t stack_bytes = n * kStride + 4096;
  stacks = static_cast<char*>(mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  const uint64_t end = std::min<uint64_t>(blocks, options.last_block == ~0ull ? blocks : options.last_block + 1);
  for (block.index = options.first_block; block.index < end && block.error.empty(); ++block.index) {
    now.block = {static_cast<unsigned>(block.index % grid.x), static_cast<unsigned>(block.index / grid.x % grid.y),
                 static_cast<unsigned>(block.index / (static_cast<size_t>(grid.x) * grid.y))};
    run_block();
  }
  munmap(stacks, stack_bytes);
  std::free(mem);
  block.smem = nullptr;
  return block.error;
}

}  // namespace emu
