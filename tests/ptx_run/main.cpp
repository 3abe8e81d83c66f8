// The command line: which cases, in how many processes, and the report.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "runtime.h"

using namespace ptx_run;

namespace {

constexpr const char* kUsage =
    "ptx_run [--variant PART] [--family NAME] [--per N] [--any N | --large BLOCKS | --layers BLOCKS | --case \"...\"]\n"
    "        [--seed N] [--jobs N] [--capability 90] [--shared BYTES] [--json FILE] [--verbose]\n";

struct Arguments {
  Filter filter;
  std::string one, json;
  int per = 4, any = 0;
  int64_t large = 0, layers = 0;
  size_t jobs = 1;
  uint64_t seed = 1;
  bool verbose = false;
};

// Throws std::exception.
Arguments parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    const auto value = [&] {
      if (i + 1 == argc) throw std::invalid_argument(key + " needs a value");
      return std::string(argv[++i]);
    };
    if (key == "--variant") a.filter.variant = value();
    else if (key == "--family") a.filter.family = value();
    else if (key == "--per") a.per = std::stoi(value());
    else if (key == "--any") a.any = std::stoi(value());
    else if (key == "--large") a.large = std::stoi(value());
    else if (key == "--layers") a.layers = std::stoi(value());
    else if (key == "--case") a.one = value(), a.verbose = true;
    else if (key == "--seed") a.seed = std::stoull(value());
    else if (key == "--jobs") a.jobs = std::stoul(value());
    else if (key == "--json") a.json = value();
    else if (key == "--capability") device.capability = std::stoi(value());
    else if (key == "--shared")
      device.shared_per_block = std::stoi(value()), device.shared_per_sm = device.shared_per_block + 1024;
    else if (key == "--verbose") a.verbose = true;
    else throw std::invalid_argument("unknown argument " + key);
  }
  return a;
}

Groups chosen(const Arguments& a) {
  if (!a.one.empty()) return {{case_of(a.one)}};
  if (!a.any && !a.large && !a.layers) return table(a.filter, std::max(a.per, 40), a.seed);
  Groups groups;
  for (const Case& c : a.any ? any(a.any, a.seed) : a.large ? large(a.filter) : layers(a.filter)) groups.push_back({c});
  return groups;
}

struct Failure {
  std::string family, variant, problem, error;
};
struct Tally {
  std::map<std::string, int> families;  // problems run
  std::vector<Failure> failures;
  std::map<std::string, std::vector<bool>> hits;  // of each instruction of an entry
  Totals totals;
};

// Runs every jobs-th group from `first` on, of each `per` cases, and more while they reach new instructions.
Tally work(const Arguments& a, const Groups& groups, size_t first) {
  constexpr int kPatience = 3;  // cases without news
  const int64_t sample = a.large + a.layers;
  Tally t;
  for (size_t i = first; i < groups.size(); i += a.jobs) {
    int idle = 0;
    for (size_t k = 0; k < groups[i].size() && (k < static_cast<size_t>(a.per) || idle < kPatience); ++k) {
      const Case& c = groups[i][k];
      const auto begin = std::chrono::steady_clock::now();
      const uint64_t met = totals.met;
      Verdict v;
      try {
        v = sample ? run_large(c, sample) : run(c);
      } catch (const std::exception& e) {
        v.error = e.what();
      }
      idle = totals.met - met > 10 ? 0 : idle + 1;
      const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      ++t.families[v.family.empty() ? "?" : v.family];
      if (!v.error.empty()) t.failures.push_back({v.family, v.name, text_of(c), v.error});
      if (a.verbose)
        std::printf("%s %s, %.2f s, %.3f of the tolerance: %s\n", v.error.empty() ? "ok" : "FAILED", v.name.c_str(), s,
                    v.worst, text_of(c).c_str());
      std::fflush(stdout);
    }
  }
  each_module([&](Module& m) {
    for (const auto& [name, p] : m.programs)
      if (p) t.hits[name].assign(p->hits.begin(), p->hits.end());
  });
  t.totals = totals;
  return t;
}

// ---- between processes: lines, each a word and its fields, apart by tabs ----

void write(const Tally& t, std::FILE* to) {
  for (const auto& [name, n] : t.families) std::fprintf(to, "family\t%s\t%d\n", name.c_str(), n);
  for (const Failure& f : t.failures)
    std::fprintf(to, "failure\t%s\t%s\t%s\t%s\n", f.family.c_str(), f.variant.c_str(), f.problem.c_str(),
                 f.error.c_str());
  for (const auto& [name, hits] : t.hits) {
    std::fprintf(to, "hits\t%s\t", name.c_str());
    for (const bool hit : hits) std::fputc(hit ? '1' : '0', to);
    std::fputc('\n', to);
  }
  std::fprintf(to, "totals\t%llu\t%llu\t%llu\n", static_cast<unsigned long long>(t.totals.launches),
               static_cast<unsigned long long>(t.totals.blocks), static_cast<unsigned long long>(t.totals.instructions));
  std::fflush(to);
}

// Returns whether the other process had written all.
bool add(std::FILE* from, Tally* t) {
  std::rewind(from);
  char* line = nullptr;
  size_t room = 0;
  bool whole = false;
  for (ssize_t n; (n = getline(&line, &room, from)) > 0;) {
    std::vector<std::string> f(1);
    for (const char* c = line; c < line + n - 1; ++c) {
      if (*c == '\t') f.emplace_back();
      else f.back() += *c;
    }
    if (f[0] == "family") t->families[f[1]] += std::stoi(f[2]);
    if (f[0] == "failure") t->failures.push_back({f[1], f[2], f[3], f[4]});
    if (f[0] == "totals")
      t->totals.launches += std::stoull(f[1]), t->totals.blocks += std::stoull(f[2]),
          t->totals.instructions += std::stoull(f[3]), whole = true;
    if (f[0] != "hits") continue;
    auto& hits = t->hits[f[1]];
    hits.resize(f[2].size());
    for (size_t i = 0; i < hits.size(); ++i) hits[i] = hits[i] || f[2][i] == '1';
  }
  std::free(line);
  return whole;
}

// ---- the report ----

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}
template <class List, class Text>
std::string list_of(const List& list, const Text& text) {
  std::string out;
  for (const auto& one : list) out += (out.empty() ? "" : ",\n ") + text(one);
  return "[" + out + "]";
}

struct Line {  // of the source, as the entries have it whose instructions of that line nothing reached
  size_t entries = 0, instructions = 0;
  std::string entry, text;  // one of them
};

// JSON: problems by family, failures, the entries that no problem ran, and the source lines that were not reached in some
// other entry.
std::string json_of(const Tally& t, double seconds) {
  std::vector<std::string> never;
  std::map<std::string, Line> unreached;
  size_t entries = 0, instructions = 0, reached = 0;
  each_module([&](Module& m) {
    for (const auto& entry : m.entries) {
      ++entries;
      const auto found = t.hits.find(entry.first);
      if (found == t.hits.end()) {
        never.push_back(entry.first);
        continue;
      }
      const Program& p = m.program(entry.first);
      std::map<std::pair<int, int>, std::vector<size_t>> lines;  // file and line: instructions
      for (size_t i = 0; i < p.code.size(); ++i) lines[{p.code[i].file, p.code[i].line}].push_back(i);
      for (const auto& [place, own] : lines) {
        const auto hit = [&](size_t i) { return found->second[i]; };
        const auto met = static_cast<size_t>(std::count_if(own.begin(), own.end(), hit));
        instructions += own.size(), reached += met;
        if (met) continue;
        const auto file = m.files.find(place.first);
        Line& line = unreached[(file == m.files.end() ? "?" : file->second) + ":" + std::to_string(place.second)];
        ++line.entries, line.instructions += own.size();
        line.entry = entry.first, line.text = p.code[own[0]].text;
      }
    }
  });
  std::string problems;
  for (const auto& [name, n] : t.families)
    problems += (problems.empty() ? "" : ", ") + quoted(name) + ": " + std::to_string(n);
  const auto number = [](const char* name, auto value) {
    return ", " + quoted(name) + ": " + std::to_string(value);
  };
  const std::string failures = list_of(t.failures, [](const Failure& f) {
    return "{\"family\": " + quoted(f.family) + ", \"variant\": " + quoted(f.variant) + ", \"case\": " + quoted(f.problem) + ", \"error\": " +
           quoted(f.error) + "}";
  });
  const std::string places = list_of(unreached, [](const auto& line) {
    const Line& l = line.second;
    return "{\"place\": " + quoted(line.first) + ", \"entries\": " + std::to_string(l.entries) +
           ", \"instructions\": " + std::to_string(l.instructions) +
           ", \"entry\": " + quoted(l.entry) + ", \"text\": " + quoted(l.text) + "}";
  });
  return "{\"problems\": {" + problems + "}" + number("entries", entries) + number("instructions", instructions) +
         number("reached", reached) + number("launches", t.totals.launches) + number("blocks", t.totals.blocks) +
         number("executed", t.totals.instructions) + number("seconds", seconds) + ",\n\"failures\": " + failures +
         ",\n\"never_run\": " + list_of(never, quoted) + ",\n\"unreached\": " + places + "}\n";
}

// Every jobs-th group in a process of its own. Returns whether all came to their end.
bool run_all(const Arguments& a, const Groups& groups, Tally* t) {
  std::vector<std::pair<pid_t, std::FILE*>> children;
  for (size_t j = 0; j < a.jobs; ++j) {
    std::FILE* file = std::tmpfile();
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that runs out of time ends the program, which ends its children
      write(work(a, groups, j), file);
      std::_Exit(0);
    }
    children.emplace_back(child, file);
  }
  bool whole = true;
  for (const auto& [child, file] : children) {
    int status = 0;
    waitpid(child, &status, 0);
    whole &= add(file, t) && status == 0;
    std::fclose(file);
  }
  return whole;
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments a = parse(argc, argv);
  const auto begin = std::chrono::steady_clock::now();
  const Groups groups = chosen(a);
  if (groups.empty()) return std::fprintf(stderr, "no variant supports any of these problems\n"), 2;
  Tally t;
  const bool whole = run_all(a, groups, &t);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (const Failure& f : t.failures)
    std::printf("FAILED %s\n  %s\n  %s\n", f.variant.c_str(), f.problem.c_str(), f.error.c_str());
  if (!whole) std::printf("FAILED: a process crashed\n");
  int problems = 0;
  for (const auto& [name, n] : t.families) std::printf("%-16s %5d problems\n", name.c_str(), n), problems += n;
  std::printf("%d problems, %zu failed; %zu entries run, %.0f M warp instructions, %.1f s\n", problems,
              t.failures.size(), t.hits.size(), static_cast<double>(t.totals.instructions) / 1e6, seconds);
  if (!a.json.empty()) {
    std::FILE* file = std::fopen(a.json.c_str(), "w");
    if (!file) return std::fprintf(stderr, "cannot write %s\n", a.json.c_str()), 2;
    std::fputs(json_of(t, seconds).c_str(), file);
    std::fclose(file);
  }
  return !whole || !t.failures.empty();
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n%s", e.what(), kUsage), 2;
}
