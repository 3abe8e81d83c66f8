// Who has seen what of shared memory: races. Of most programs all warps meet at barriers of the whole block alone, which are
// counted. Where they meet otherwise (named barriers, mbarriers), each warp has a clock, and keeps of each other warp
// until when it has seen what that one did: a release hands this on, an acquire takes it over.
#include <algorithm>

#include "ptx.h"

namespace ptx_run {
namespace {

// Where only barriers of the whole block order the accesses of different warps
void check_times(Block& b, Warp& w, const Inst& i, int lane, uint64_t offset, int bytes, bool write) {
  constexpr int kWarp = -2, kWarps = -1000;  // readers: kWarp - n: lanes of warp n, kWarps: of several warps
  const int me = thread_of(w, lane);
  for (uint64_t k = offset / 2; k < (offset + static_cast<uint64_t>(bytes) + 1) / 2; ++k) {
    Touch& t = b.touched[k];
    if (t.write_time == b.time && t.writer != me && (t.writer / 32 != w.number || t.write_epoch == w.epoch))
      b.fault(w, i, lane,
              "race: shared byte " + std::to_string(2 * k) + " was written by thread " + std::to_string(t.writer));
    if (write) {
      if (t.read_time == b.time && t.reader != me) {
        const int warp = t.reader >= 0 ? t.reader / 32 : t.reader > kWarps ? kWarp - t.reader : -1;
        if (warp != w.number || t.read_epoch == w.epoch)
          b.fault(w, i, lane,
                  "race: shared byte " + std::to_string(2 * k) + " was read by " +
                      (t.reader >= 0 ? "thread " + std::to_string(t.reader) : "several threads"));
      }
      t.write_time = b.time, t.write_epoch = w.epoch, t.writer = static_cast<int16_t>(me);
    } else if (t.read_time != b.time) {
      t.read_time = b.time, t.read_epoch = w.epoch, t.reader = static_cast<int16_t>(me);
    } else if (t.reader != me && t.reader != kWarps) {
      const int warp = t.reader >= 0 ? t.reader / 32 : kWarp - t.reader;
      if (warp != w.number) t.reader = kWarps;
      else if (t.read_epoch != w.epoch) t.read_epoch = w.epoch, t.reader = static_cast<int16_t>(me);
      else t.reader = static_cast<int16_t>(kWarp - warp);
    } else if (t.reader == me) {
      t.read_epoch = w.epoch;
    }
  }
}

std::string byte_of(uint64_t place) { return "shared byte " + std::to_string(2 * place); }

void check_clocks(Block& b, Warp& w, const Inst& i, int lane, uint64_t offset, int bytes, bool write) {
  const auto me = static_cast<int16_t>(thread_of(w, lane));
  const size_t warps = b.warps.size(), own = static_cast<size_t>(w.number);
  const bool more = w.met >> lane & 1;  // it has seen what not all lanes of the warp have
  const auto seen = [&](size_t u) { return more ? std::max(w.seen[u], w.met_later[u]) : w.seen[u]; };
  for (uint64_t k = offset / 2; k < (offset + static_cast<uint64_t>(bytes) + 1) / 2; ++k) {
    LastWrite& t = b.writes[k];
    const auto writer = static_cast<size_t>(t.thread / 32);
    if (writer == own ? t.thread != me && t.epoch == w.epoch && t.clock >= b.start : t.clock > seen(writer))
      b.fault(w, i, lane, "race: " + byte_of(k) + " was written by thread " + std::to_string(t.thread));
    LastRead* const reads = &b.reads[k * warps];
    if (!write) {
      LastRead& r = reads[own];
      const bool others = r.clock >= b.start && r.epoch == w.epoch && r.thread != me;
      r = {w.clock, w.epoch, others ? static_cast<int16_t>(-1) : me};
      continue;
    }
    for (size_t u = 0; u < warps; ++u)
      if (u == own ? reads[u].thread != me && reads[u].epoch == w.epoch && reads[u].clock >= b.start
                   : reads[u].clock > seen(u))
        b.fault(w, i, lane, "race: " + byte_of(k) + " was read by warp " + std::to_string(u));
    t = {w.clock, w.epoch, me};
  }
}

}  // namespace

void join(Clocks& to, const Clocks& from) {
  to.resize(std::max(to.size(), from.size()));
  for (size_t u = 0; u < from.size(); ++u) to[u] = std::max(to[u], from[u]);
}

void Block::prepare_order() {
  const size_t places = smem.size() / 2 + 1;
  touched.resize(std::max(touched.size(), places));
  if (!program->clocks) return;
  writes.assign(places, {0, 0, 0}), reads.assign(places * warps.size(), {0, 0, 0});
}

void Block::start_order() {
  start = tick();
  for (Warp& w : warps) {
    w.seen.assign(warps.size(), start), w.fenced = w.seen;
    w.met_later.assign(warps.size(), 0), w.fenced_later = w.met_later, w.met = 0;
    w.clock = w.seen[static_cast<size_t>(w.number)] = start + 1;
  }
  while (tick() <= start + 1) {}
}

void Block::order(Warp& w, const Inst& i, int lane, uint64_t offset, int bytes, bool write) {
  (program->clocks ? check_clocks : check_times)(*this, w, i, lane, offset, bytes, write);
}

// A copy writes until it lands.
void Block::order_landing(const Warp& w, int lane, uint64_t offset, int bytes, uint32_t clock) {
  const auto me = static_cast<int16_t>(thread_of(w, lane));
  for (uint64_t k = offset / 2; k < (offset + static_cast<uint64_t>(bytes)) / 2; ++k) {
    if (program->clocks) writes[k] = {clock, w.epoch, me};
    else touched[k].write_time = time, touched[k].write_epoch = w.epoch, touched[k].writer = me;
  }
}

// By the asynchronous proxy: what the others wrote must have been seen, and fenced.
void Block::order_async_read(Warp& w, const Inst& i, uint64_t offset, int bytes) {
  for (uint64_t k = offset / 2; k < (offset + static_cast<uint64_t>(bytes)) / 2; ++k) {
    const LastWrite& t = writes[k];
    const auto writer = static_cast<size_t>(t.thread / 32);
    if (t.clock > w.seen[writer])
      fault(w, i, 0, "race: " + byte_of(k) + " was written by thread " + std::to_string(t.thread));
    if (t.clock > w.fenced[writer])
      fault(w, i, 0, "no fence.proxy.async after the write of " + byte_of(k) + " by thread " + std::to_string(t.thread));
  }
}

void Block::note_async_read(const Warp& w, uint64_t offset, int bytes) {
  for (uint64_t k = offset / 2; k < (offset + static_cast<uint64_t>(bytes)) / 2; ++k)
    reads[k * warps.size() + static_cast<size_t>(w.number)] = {w.clock, w.epoch, -1};
}

// What a warp did until now is in `seen` and `fenced` of whoever joins them; what it does next is not.
void Block::release(Warp& w, Clocks& seen, Clocks& fenced) {
  join(seen, w.seen), join(fenced, w.fenced);
  w.clock = w.seen[static_cast<size_t>(w.number)] = tick();
}

void Block::arrive(Warp& w, const Inst& i, bool waits) {
  const int lane = __builtin_ctz(w.alive), number = w.at<int>(i.op[0])[lane];
  const bool whole = i.opcode->operands.size() == 1;
  const int threads = whole ? 32 * static_cast<int>(warps.size()) : w.at<int>(i.op[1])[lane];
  if (number < 0 || number > 15 || threads % 32) fault(w, i, lane, "barrier of that number or of part of a warp");
  NamedBarrier& to = barriers[number];
  if (to.expected && to.expected != threads) fault(w, i, 0, "another number of threads than those at the barrier expect");
  to.expected = threads, to.arrived += 32;
  if (program->clocks) release(w, to.seen, to.fenced);
  if (waits) w.at_barrier = number;
  if (to.arrived < threads) return;
  for (Warp& one : warps) {
    if (one.at_barrier != number) continue;
    one.at_barrier = -1, ++one.epoch;
    if (program->clocks) join(one.seen, to.seen), join(one.fenced, to.fenced);
  }
  to = {};
  if (whole && exited) fault(w, i, 0, "barrier after threads have exited");
  if (whole) time = tick();
}

}  // namespace ptx_run
