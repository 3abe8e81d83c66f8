// Answers kept by problem, so that a repeated launch pays a look-up: one cache per kind of answer, for all threads
// (torch runs backward on another thread than forward).
#pragma once
#include <array>
#include <cstddef>
#include <mutex>
#include <unordered_map>

#include "problem.h"

namespace replknet_ext {

// Entries of one cache. A training step of a large network asks about some hundred problems. A full cache is emptied:
// memory is bounded, and no order of calls can make it lose a plan more often than once per so many new problems.
constexpr size_t kMostCached = 4096;

// Every field, as equality and the hash of a key see it.
inline std::array<int64_t, 17> numbers_of(const Problem& p) {
  static_assert(sizeof(Problem) == 104, "a field of Problem is missing here");
  const auto number = [](auto value) { return static_cast<int64_t>(value); };
  return {p.n, p.c, p.h, p.w, p.kh, p.kw, p.ho, p.wo, p.pad_top, p.pad_left, number(p.dtype), p.channels_last, p.flip,
          number(p.activation), number(p.pass), number(p.precision), number(p.algorithm)};
}

template <size_t kSize>
struct HashNumbers {
  size_t operator()(const std::array<int64_t, kSize>& numbers) const {
    uint64_t hash = 0;
    for (int64_t v : numbers) {
      hash = (hash ^ static_cast<uint64_t>(v)) * 0x9e3779b97f4a7c15ull;
      hash ^= hash >> 32;
    }
    return static_cast<size_t>(hash);
  }
};

// What make(answer) fills in and returns: null, or the reason why there is no answer; both are kept. Tag keeps caches of
// one Answer type apart; `more` is all that an answer depends on beside the problem and the variant. make runs without the
// lock, so it may take long or call Python; what it throws is passed on, and nothing is kept.
template <class Answer, class Tag, size_t kMore, class Make>
const char* cached_plan(const Problem& p, const std::array<int64_t, kMore>& more, int variant, Answer* answer,
                        const Make& make) {
  const auto problem = numbers_of(p);
  using Key = std::array<int64_t, std::tuple_size_v<decltype(problem)> + kMore + 1>;
  Key key{variant};
  size_t at = 1;
  for (int64_t v : problem) key[at++] = v;
  for (int64_t v : more) key[at++] = v;

  struct Entry {
    const char* why;
    Answer answer;
  };
  struct Cache {
    std::mutex mutex;
    std::unordered_map<Key, Entry, HashNumbers<std::tuple_size_v<Key>>> entries;
  };
  static Cache& cache = *new Cache;  // never destroyed: threads may still launch while the process ends
  {
    const std::lock_guard<std::mutex> lock(cache.mutex);
    if (const auto found = cache.entries.find(key); found != cache.entries.end()) {
      *answer = found->second.answer;
      return found->second.why;
    }
  }
  Entry made{nullptr, {}};
  made.why = make(&made.answer);
  const std::lock_guard<std::mutex> lock(cache.mutex);
  if (cache.entries.size() >= kMostCached) cache.entries.clear();
  const Entry& kept = cache.entries.emplace(key, made).first->second;  // the first of two threads' answers
  *answer = kept.answer;
  return kept.why;
}

}  // namespace replknet_ext
