// The best items of queries: products of int8 vectors, filters and selection in one pass over the
// items, which may be a memory-mapped file of any size.
//
// Answers are the same for any number of threads, and those of `dlrm_jax.retrieval.index.jax_search`:
// products are integers, and of equal scores the item with the lowest number comes first.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "int8_products.h"
#include "threads.h"

namespace {

// As `native.item_scan` describes it to ctypes.
struct Index {
  const int8_t* vectors;      // [blocks][groups][kBlock][4]
  const float* scales;        // [blocks * kBlock]
  const int32_t* numbers;     // of the items, [blocks * kBlock]; -1 is a gap
  const uint32_t* bits;       // a Bloom filter of each item, [blocks][bloom_bits], an item a bit; or none
  const int32_t* attributes;  // [blocks * kBlock][attribute_columns]
  const int64_t* starts;      // first block of each cell, and the end, [cells + 1]
  int64_t groups, bloom_bits, attribute_columns, cells;
};

// One of the attribute columns [first_column, last_column) is one of the values, which ascend.
struct Clause {
  int64_t first_column, last_column, first_value, last_value;
};

struct Queries {
  const int8_t* numbers;         // [count][4 * groups]
  const int32_t* probes;         // cells of each query, [count][cells_each]; or none for all cells
  const int32_t* filters;        // filter of each query, negative without; or none
  const int64_t* filter_starts;  // first clause of each filter, and the end
  const Clause* clauses;
  const int32_t* values;
  const int32_t* positions;  // bits of each value in Bloom filters, [values][hashes]
  int64_t count, cells_each, hashes, best;
  int64_t* found;  // numbers of the best items, [count][best]; -1 behind the last
  float* scores;   // [count][best]
};

constexpr int64_t kTile = 32;  // blocks that all queries are multiplied with before the next ones
constexpr int64_t kMostAtOnce = 256;  // queries of a task
constexpr int64_t kMostTested = 16;   // values of a clause; beyond, the test costs more than it saves
constexpr int64_t kProductsPerThread = 1 << 22;

// The best keys so far. A key has the score in its upper half, so that greater ones are better, and
// in its lower half the number of the item, so that of equal scores the lowest is the best.
class Best {
 public:
  explicit Best(int64_t count) : count_(count) { keys_.reserve(2 * count); }

  float threshold() const { return threshold_; }

  void Add(float score, int32_t number) {
    const uint64_t key = KeyOf(score, number);
    if (key <= least_) return;
    keys_.push_back(key);
    if (static_cast<int64_t>(keys_.size()) < 2 * count_) return;
    Cut();
    least_ = keys_[count_ - 1];
    threshold_ = ScoreOf(least_);
  }

  void Merge(const Best& other) { keys_.insert(keys_.end(), other.keys_.begin(), other.keys_.end()); }

  void Write(int64_t* numbers, float* scores) {
    if (static_cast<int64_t>(keys_.size()) > count_) Cut();
    std::sort(keys_.begin(), keys_.end(), std::greater<uint64_t>());
    for (int64_t i = 0; i < count_; ++i) {
      const bool is_there = i < static_cast<int64_t>(keys_.size());
      numbers[i] = is_there ? static_cast<int64_t>(~keys_[i] & 0xffffffff) : -1;
      scores[i] = is_there ? ScoreOf(keys_[i]) : -std::numeric_limits<float>::infinity();
    }
  }

 private:
  static uint64_t KeyOf(float score, int32_t number) {
    score += 0.f;  // no -0
    uint32_t bits;
    std::memcpy(&bits, &score, 4);
    bits ^= bits >> 31 ? 0xffffffff : 0x80000000;
    return uint64_t{bits} << 32 | static_cast<uint32_t>(~number);
  }

  static float ScoreOf(uint64_t key) {
    uint32_t bits = key >> 32;
    bits ^= bits >> 31 ? 0x80000000 : 0xffffffff;
    float score;
    std::memcpy(&score, &bits, 4);
    return score;
  }

  void Cut() {
    std::nth_element(keys_.begin(), keys_.begin() + count_ - 1, keys_.end(), std::greater<uint64_t>());
    keys_.resize(count_);
  }

  int64_t count_;
  uint64_t least_ = 0;
  float threshold_ = -std::numeric_limits<float>::infinity();
  std::vector<uint64_t> keys_;
};

// Items of a block that may pass a filter, by their Bloom filters: none that passes is missing.
uint32_t MayPass(const Index& index, const Queries& queries, int64_t filter, int64_t block) {
  if (!index.bits) return ~uint32_t{0};
  const uint32_t* const bits = index.bits + block * index.bloom_bits;
  uint32_t passing = ~uint32_t{0};
  for (int64_t i = queries.filter_starts[filter]; i < queries.filter_starts[filter + 1]; ++i) {
    const Clause& clause = queries.clauses[i];
    if (clause.last_value - clause.first_value > kMostTested) continue;
    uint32_t any = 0;
    for (int64_t value = clause.first_value; value < clause.last_value; ++value) {
      const int32_t* const positions = queries.positions + value * queries.hashes;
      uint32_t all = bits[positions[0]];
      for (int64_t hash = 1; hash < queries.hashes; ++hash) all &= bits[positions[hash]];
      any |= all;
    }
    passing &= any;
    if (!passing) break;
  }
  return passing;
}

// Whether the item of a place passes a filter, by its attributes.
bool Passes(const Index& index, const Queries& queries, int64_t filter, int64_t place) {
  const int32_t* const own = index.attributes + place * index.attribute_columns;
  for (int64_t i = queries.filter_starts[filter]; i < queries.filter_starts[filter + 1]; ++i) {
    const Clause& clause = queries.clauses[i];
    const bool is_any = std::any_of(
        own + clause.first_column, own + clause.last_column, [&](int32_t value) {
          return std::binary_search(queries.values + clause.first_value,
                                    queries.values + clause.last_value, value);
        });
    if (!is_any) return false;
  }
  return true;
}

// Some of the queries of a cell, side by side.
struct Packed {
  std::vector<int8_t> numbers;
  std::vector<int32_t> members;  // numbers of the queries
  int32_t sums[kMostQueries];
};

Packed Pack(const Queries& queries, int64_t groups, const int32_t* members, int64_t count) {
  Packed packed;
  packed.members.assign(members, members + count);
  packed.numbers.resize(4 * groups * count);
  for (int64_t q = 0; q < count; ++q) {
    const int8_t* const numbers = queries.numbers + members[q] * 4 * groups;
    int32_t sum = 0;
    for (int64_t i = 0; i < 4 * groups; ++i) sum += numbers[i];
    packed.sums[q] = sum;
    for (int64_t group = 0; group < groups; ++group)
      std::memcpy(&packed.numbers[4 * (group * count + q)], numbers + 4 * group, 4);
  }
  return packed;
}

// Blocks [begin, end) for some queries, whose best items are best[member - first_query].
template <int kQueries>
void ScanBlocks(const Index& index, const Queries& queries, const Packed& packed, int64_t begin,
                int64_t end, int64_t first_query, Best* best) {
  QueryGroup group{packed.numbers.data(), {}};
  std::copy_n(packed.sums, kQueries, group.sums);
  int64_t filters[kQueries];
  for (int q = 0; q < kQueries; ++q)
    filters[q] = queries.filters ? queries.filters[packed.members[q]] : -1;
  for (int64_t block = begin; block < end; ++block) {
    uint32_t passing[kQueries], any = 0;
    for (int q = 0; q < kQueries; ++q) {
      if (q && filters[q] == filters[q - 1])
        passing[q] = passing[q - 1];
      else
        passing[q] = filters[q] < 0 ? ~uint32_t{0} : MayPass(index, queries, filters[q], block);
      any |= passing[q];
    }
    if (!any) continue;
    alignas(64) int32_t products[kQueries][kBlock];
    alignas(64) float scores[kBlock];
    Products<kQueries>(index.vectors + block * index.groups * 4 * kBlock, index.groups, group,
                       products);
    for (int q = 0; q < kQueries; ++q) {
      Best& own = best[packed.members[q] - first_query];
      uint32_t found =
          passing[q] & Reaching(products[q], index.scales + block * kBlock, own.threshold(), scores);
      for (; found; found &= found - 1) {
        const int i = __builtin_ctz(found);
        const int64_t place = block * kBlock + i;
        const int32_t number = index.numbers[place];
        if (number < 0 || scores[i] < own.threshold()) continue;
        if (filters[q] < 0 || Passes(index, queries, filters[q], place)) own.Add(scores[i], number);
      }
    }
  }
}

// The cells that queries read, and those queries: members[starts[i]] ... of cells[i].
struct Reads {
  std::vector<int32_t> cells, members;
  std::vector<int64_t> starts;
};

// The reads of queries [begin, end). Cells that are the nearest of a query come before those that are
// the second of one, and so on, so that thresholds rise early.
Reads FindReads(const Index& index, const Queries& queries, int64_t begin, int64_t end) {
  Reads reads;
  if (!queries.probes) {  // all cells, by all queries
    reads.starts.push_back(0);
    for (int32_t cell = 0; cell < index.cells; ++cell) {
      reads.cells.push_back(cell);
      for (int64_t query = begin; query < end; ++query)
        reads.members.push_back(static_cast<int32_t>(query));
      reads.starts.push_back(static_cast<int64_t>(reads.members.size()));
    }
    return reads;
  }
  std::vector<std::vector<int32_t>> members(index.cells);
  for (int64_t rank = 0; rank < queries.cells_each; ++rank) {
    for (int64_t query = begin; query < end; ++query) {
      const int32_t cell = queries.probes[query * queries.cells_each + rank];
      if (members[cell].empty()) reads.cells.push_back(cell);
      members[cell].push_back(static_cast<int32_t>(query));
    }
  }
  reads.starts.push_back(0);
  for (const int32_t cell : reads.cells) {
    reads.members.insert(reads.members.end(), members[cell].begin(), members[cell].end());
    reads.starts.push_back(static_cast<int64_t>(reads.members.size()));
  }
  return reads;
}

// Every `parts`-th tile of the cells of queries [begin, end), from the `part`-th on.
void Scan(const Index& index, const Queries& queries, int64_t begin, int64_t end, int64_t part,
          int64_t parts, Best* best) {
  static constexpr decltype(&ScanBlocks<1>) kScan[] = {
      ScanBlocks<1>, ScanBlocks<2>, ScanBlocks<3>, ScanBlocks<4>,
      ScanBlocks<5>, ScanBlocks<6>, ScanBlocks<7>, ScanBlocks<8>};
  const Reads reads = FindReads(index, queries, begin, end);
  int64_t number = 0;
  for (size_t i = 0; i < reads.cells.size(); ++i) {
    std::vector<Packed> packed;
    for (int64_t j = reads.starts[i]; j < reads.starts[i + 1]; j += kMostQueries)
      packed.push_back(Pack(queries, index.groups, &reads.members[j],
                            std::min<int64_t>(kMostQueries, reads.starts[i + 1] - j)));
    const int64_t last = index.starts[reads.cells[i] + 1];
    for (int64_t block = index.starts[reads.cells[i]]; block < last; block += kTile) {
      if (number++ % parts != part) continue;
      for (const Packed& some : packed)
        kScan[some.members.size() - 1](index, queries, some, block, std::min(block + kTile, last),
                                       begin, best);
    }
  }
}

}  // namespace

// Finds the best items of queries, on up to so many threads. Nothing is checked.
extern "C" void DlrmJaxFindItems(const void* index_of, const void* queries_of, int64_t threads) {
  const Index& index = *static_cast<const Index*>(index_of);
  const Queries& queries = *static_cast<const Queries*>(queries_of);
  if (!queries.count) return;
  const int64_t share = queries.probes ? index.cells / queries.cells_each : 1;
  const int64_t products =
      queries.count * (index.starts[index.cells] / share) * kBlock * index.groups * 4;
  threads = std::clamp<int64_t>(products / kProductsPerThread, 1, threads);
  // Queries are dealt out first: those of a task read the items once.
  const int64_t least = (queries.count + threads - 1) / threads;
  const int64_t rounded = (least + kMostQueries - 1) / kMostQueries * kMostQueries;
  const int64_t each = std::min(rounded, kMostAtOnce);
  const int64_t tasks = (queries.count + each - 1) / each;
  const int64_t parts = std::max<int64_t>(1, threads / tasks);
  std::vector<Best> best(parts * queries.count, Best(queries.best));
  OnThreads(threads, tasks * parts, [&](int64_t i) {
    const int64_t begin = i / parts * each, end = std::min(begin + each, queries.count);
    Best* const own = &best[i % parts * queries.count + begin];
    for (int64_t query = 0; query < end - begin; ++query) own[query] = Best(queries.best);
    Scan(index, queries, begin, end, i % parts, parts, own);
    for (int64_t query = begin; parts == 1 && query < end; ++query)
      best[query].Write(queries.found + query * queries.best, queries.scores + query * queries.best);
  });
  for (int64_t query = 0; parts > 1 && query < queries.count; ++query) {
    for (int64_t part = 1; part < parts; ++part)
      best[query].Merge(best[part * queries.count + query]);
    best[query].Write(queries.found + query * queries.best, queries.scores + query * queries.best);
  }
}
