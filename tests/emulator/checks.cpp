// Shadow memory: races, uninitialised reads, bounds, cp.async waits, bank conflicts. A kernel file compiled with
// -fsanitize=thread and linked without it reports every load and store to the __tsan_ functions below.
#include "runtime.h"

namespace emu {

std::vector<Buffer> buffers;
bool instrumented = false;
std::map<const void*, std::pair<uint64_t, uint64_t>> sites;

namespace {
// Two accesses of a byte race when one writes, their threads differ, no __syncthreads lies between them (block epoch)
// and, within a warp, no __syncwarp either (warp epoch).
struct Shadow {
  uint32_t write_epoch = 0, write_warp_epoch = 0, read_epoch = 0, read_warp_epoch = 0;
  uint32_t readers = 0;  // lanes of reader_warp since its last __syncwarp
  uint16_t writer = 0, reader_warp = 0;
  bool many_warps_read = false, initialised = false, in_flight = false;
};
std::vector<Shadow> shadow;

std::string at_byte(size_t i) { return " at byte " + std::to_string(i) + " of shared memory"; }

[[noreturn]] void race(const char* what, int other, size_t byte) {
  std::string m = std::string("race: ") + what;
  if (other >= 0) m += " by thread " + std::to_string(other);
  fail(m + at_byte(byte));
}

void write_byte(Shadow& s, size_t i, Mark mark) {
  const uint32_t epoch = block.epoch, warp_epoch = block.warps[current->warp].epoch;
  if (s.write_epoch == epoch && s.writer != current->id &&
      !(s.writer / 32 == current->warp && s.write_warp_epoch != warp_epoch))
    race("write after write", s.writer, i);
  if (s.read_epoch == epoch) {
    if (s.many_warps_read) race("write after reads of several warps", -1, i);
    if (s.reader_warp != current->warp) race("write after read", s.reader_warp * 32 + __builtin_ctz(s.readers), i);
    const uint32_t others = s.readers & ~(1u << current->lane);
    if (s.read_warp_epoch == warp_epoch && others) race("write after read", current->warp * 32 + __builtin_ctz(others), i);
  }
  s.write_epoch = epoch;
  s.write_warp_epoch = warp_epoch;
  s.writer = static_cast<uint16_t>(current->id);
  s.in_flight = mark == Mark::in_flight;
  s.initialised = true;
}

void read_byte(Shadow& s, size_t i) {
  const uint32_t epoch = block.epoch, warp_epoch = block.warps[current->warp].epoch;
  if (!s.initialised) fail("read of uninitialised shared memory" + at_byte(i));
  if (s.in_flight) fail("read before cp.async.wait_group of data in flight" + at_byte(i));
  if (s.write_epoch == epoch && s.writer != current->id &&
      !(s.writer / 32 == current->warp && s.write_warp_epoch != warp_epoch))
    race("read after write", s.writer, i);
  const auto warp = static_cast<uint16_t>(current->warp);
  if (s.read_epoch != epoch) {
    s.many_warps_read = false;
    s.reader_warp = warp;
    s.readers = 0;
  } else if (s.reader_warp != warp) {
    s.many_warps_read = true;
  } else if (s.read_warp_epoch != warp_epoch) {
    s.readers = 0;
  }
  s.read_epoch = epoch;
  s.read_warp_epoch = warp_epoch;
  s.readers |= 1u << current->lane;
}

// Extra wavefronts of one warp-wide access: 32 banks of 4 bytes; 8- and 16-byte accesses go in halves and quarters.
int extra_wavefronts(const std::vector<std::pair<int, Access>>& lanes) {
  const int bytes = lanes[0].second.bytes, lanes_at_once = bytes <= 4 ? 32 : 128 / bytes;
  int extra = 0;
  for (int first = 0; first < 32; first += lanes_at_once) {
    std::vector<uint32_t> words[32];
    size_t most = 0;
    for (const auto& [lane, a] : lanes) {
      if (lane < first || lane >= first + lanes_at_once) continue;
      for (uint32_t w = a.offset / 4; w <= (a.offset + a.bytes - 1) / 4; ++w) {
        auto& bank = words[w % 32];
        if (std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
        most = std::max(most, bank.size());
      }
    }
    if (most > 1) extra += static_cast<int>(most) - 1;
  }
  return extra;
}

void hook(const void* p, int bytes, bool write, const void* site) {
  if (!current) return;
  const size_t offset = static_cast<const unsigned char*>(p) - block.smem;
  if (offset < block.smem_bytes + kSmemGuard || offset >= static_cast<size_t>(-static_cast<long>(kSmemGuard))) {
    check_shared(p, bytes, write);
    if (options.banks) log_access(site, p, bytes, write);
  } else {
    check_global(p, bytes, write);
  }
}
}  // namespace

void check_reset(bool new_launch) {
  if (new_launch) {
    shadow.assign(instrumented ? block.smem_bytes : 0, Shadow{});
    for (Buffer& b : buffers) std::fill(b.writer.begin(), b.writer.end(), 0);
  }
  for (Shadow& s : shadow) s.initialised = s.in_flight = false;
}

void check_shared(const void* p, int bytes, bool write, Mark mark) {
  const long offset = static_cast<const unsigned char*>(p) - block.smem;
  if (offset < 0 || offset + bytes > static_cast<long>(block.smem_bytes))
    fail("out of bounds of dynamic shared memory at byte " + std::to_string(offset));
  if (shadow.empty()) return;
  for (size_t i = offset; i < static_cast<size_t>(offset + bytes); ++i)
    write ? write_byte(shadow[i], i, mark) : read_byte(shadow[i], i);
}

void check_global(const void* p, int bytes, bool write) {
  const auto* a = static_cast<const unsigned char*>(p);
  for (Buffer& b : buffers) {
    if (a + bytes <= b.begin - b.guard || a >= b.end + b.guard) continue;
    if (a < b.begin || a + bytes > b.end)
      fail("out of bounds of global buffer " + b.name + " at byte " + std::to_string(a - b.begin));
    if (!write) return;
    if (!b.writable) fail("write to the read-only global buffer " + b.name);
    const uint64_t me = block.index * block.fibers.size() + current->id + 1;
    for (size_t i = (a - b.begin) / 2; i <= static_cast<size_t>(a - b.begin + bytes - 1) / 2; ++i) {
      if (b.writer[i] && b.writer[i] != me)
        fail("race: two threads write byte " + std::to_string(2 * i) + " of global buffer " + b.name);
      b.writer[i] = me;
    }
    return;
  }
}

void require_shared(const void* p, int bytes, const char* what) {
  const long offset = static_cast<const unsigned char*>(p) - block.smem;
  if (offset < 0 || offset + bytes > static_cast<long>(block.smem_bytes))
    fail(std::string(what) + ": out of bounds of dynamic shared memory at byte " + std::to_string(offset));
  if (offset % bytes) fail(std::string(what) + ": misaligned shared address");
}

void load_shared(void* value, const void* src, int bytes) {
  require_shared(src, bytes, "load");
  if (instrumented) check_shared(src, bytes, false);
  if (options.banks) log_access(__builtin_return_address(0), src, bytes, false);
  std::memcpy(value, src, bytes);
}

void store_shared(void* dst, const void* value, int bytes) {
  require_shared(dst, bytes, "store");
  if (instrumented) check_shared(dst, bytes, true);
  if (options.banks) log_access(__builtin_return_address(0), dst, bytes, true);
  std::memcpy(dst, value, bytes);
}

void require_aligned(const void* p, int bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("misaligned global address of " + std::to_string(bytes) + " bytes");
}

void log_access(const void* site, const void* p, int bytes, bool write) {
  current->log.push_back({site, static_cast<uint32_t>(static_cast<const unsigned char*>(p) - block.smem),
                          static_cast<uint8_t>(bytes), write});
}

// Lanes run one after the other here; on a GPU the n-th execution of an instruction since the warp last met is one
// access of the whole warp.
void flush_banks(Warp& warp) {
  if (!options.banks) return;
  const int first = static_cast<int>(&warp - block.warps.data()) * 32;
  const int last = std::min(first + 32, static_cast<int>(block.fibers.size()));
  std::map<std::pair<const void*, int>, std::vector<std::pair<int, Access>>> wide;
  for (int i = first; i < last; ++i) {
    Fiber& f = block.fibers[i];
    std::map<const void*, int> times;
    for (const Access& a : f.log) wide[{a.site, times[a.site]++}].push_back({f.lane, a});
    f.log.clear();
  }
  for (const auto& [key, lanes] : wide) {
    const int extra = extra_wavefronts(lanes);
    ++counters.accesses;
    counters.access_conflicts += extra;
    auto& s = sites[key.first];
    ++s.first;
    s.second += extra;
  }
}

}  // namespace emu

extern "C" {
#define EMU_HOOKS(n)                                                                                             \
  void __tsan_read##n(void* p) { emu::hook(p, n, false, __builtin_return_address(0)); }                          \
  void __tsan_write##n(void* p) { emu::hook(p, n, true, __builtin_return_address(0)); }                          \
  void __tsan_unaligned_read##n(void* p) { emu::hook(p, n, false, __builtin_return_address(0)); }                \
  void __tsan_unaligned_write##n(void* p) { emu::hook(p, n, true, __builtin_return_address(0)); }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
void __tsan_read_range(void* p, long n) { emu::hook(p, static_cast<int>(n), false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, long n) { emu::hook(p, static_cast<int>(n), true, __builtin_return_address(0)); }
void __tsan_init() { emu::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
