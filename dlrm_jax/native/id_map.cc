// Batches of ids as rows: the changes of `dlrm_jax.dynamic_ids.plain_id_map`, to the same bits.
//
// Maps are larger than the caches, so a block of ids is looked up in stages, each of which
// prefetches what the next one reads.

#include "id_map.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "id_map_eviction.h"
#include "threads.h"

namespace {

using id_map::DefaultOf;
using id_map::Map;
using id_map::Mix;
using id_map::Occupant;

// As `native.id_map` describes it to NumPy. What changes is written with what it was before.
struct Request {
  Map* map;
  const uint64_t* keys;
  int32_t* rows;
  int64_t count, now;
  int32_t* fresh;
  int32_t* changed;
  Occupant* before;
  int64_t* cells;
  uint8_t* cells_before;
  int64_t fresh_count, changed_count, cell_count, needed;  // results
};

constexpr int64_t kBlock = 512;
constexpr int64_t kIdsPerTask = 1 << 14;

// Calls found(i, row) in order, with row -1 for an id without one.
template <typename Found>
void FindAll(const Map& map, const uint64_t* keys, int64_t count, const Found& found) {
  int64_t slots[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    for (int64_t i = 0; i < size; ++i) {
      slots[i] = id_map::SlotOf(map, keys[begin + i]);
      __builtin_prefetch(&map.index[slots[i]]);
    }
    for (int64_t i = 0; i < size; ++i) {
      const int32_t row = map.index[slots[i]];
      if (row >= 0) __builtin_prefetch(&map.rows[row], 1);
    }
    for (int64_t i = 0; i < size; ++i) {
      found(begin + i, id_map::Find(map, keys[begin + i], slots[i]));
    }
  }
}

// Ids of a batch without a row, in the order in which they first occur.
class Unknown {
 public:
  struct Id {
    uint64_t key;
    uint32_t times;
    int32_t row;  // -1 if it is admitted and hasn't got one yet
  };

  explicit Unknown(int64_t most) : most_(most) {}

  // The number of an id, after one more occurrence.
  int64_t Count(uint64_t key, uint64_t salt) {
    if (places_.empty()) {
      while (mask_ + 1 < static_cast<uint64_t>(2 * most_)) mask_ = 2 * mask_ + 1;
      places_.assign(mask_ + 1, -1);
    }
    uint64_t place = Mix(key ^ salt) & mask_;
    while (places_[place] >= 0 && ids_[places_[place]].key != key) place = (place + 1) & mask_;
    if (places_[place] < 0) {
      places_[place] = ids_.size();
      ids_.push_back({key, 0, -1});
    }
    uint32_t& times = ids_[places_[place]].times;
    times += times < std::numeric_limits<uint32_t>::max();
    return places_[place];
  }

  std::vector<Id>& ids() { return ids_; }

 private:
  int64_t most_;
  uint64_t mask_ = 1;
  std::vector<int32_t> places_;
  std::vector<Id> ids_;
};

void Note(Request& request, int32_t row) {
  request.changed[request.changed_count] = row;
  request.before[request.changed_count++] = request.map->rows[row];
}

// The smallest of an id's cells, after its occurrences; only the smallest grow.
int64_t CountInSketch(Request& request, uint64_t hashed, uint32_t times) {
  Map& map = *request.map;
  uint8_t* const block = map.sketch + 64 * id_map::Scaled(hashed, map.blocks);
  int64_t places[4], least = 255;
  for (int q = 0; q < 4; ++q) {
    places[q] = 16 * q + (hashed >> (4 * q) & 15);
    least = std::min<int64_t>(least, block[places[q]]);
  }
  least = std::min<int64_t>(255, least + times);
  for (int64_t place : places) {
    if (block[place] >= least) continue;
    request.cells[request.cell_count] = block + place - map.sketch;
    request.cells_before[request.cell_count++] = block[place];
    block[place] = least;
  }
  map.additions += times;
  return least;
}

bool Admits(Request& request, const Unknown::Id& id) {
  const Map& map = *request.map;
  if (map.admit_count > 1 &&
      CountInSketch(request, Mix(id.key ^ map.sketch_salt), id.times) < map.admit_count) {
    return false;
  }
  if (map.admit_probability == 1) return true;
  const uint64_t hashed = Mix(id.key ^ map.draw_salt) + request.now * 0x9E3779B97F4A7C15;
  return (Mix(hashed) >> 11) * 0x1p-53 < map.admit_probability;
}

// Decides which ids get a row, and returns how many.
int64_t Admit(Request& request, std::vector<Unknown::Id>& ids) {
  const Map& map = *request.map;
  int64_t admitted = 0;
  auto prefetch = [&](int64_t i) {
    if (map.admit_count == 1) return;
    const uint64_t hashed = Mix(ids[i].key ^ map.sketch_salt);
    __builtin_prefetch(map.sketch + 64 * id_map::Scaled(hashed, map.blocks), 1);
  };
  id_map::Ahead(ids.size(), prefetch, [&](int64_t i) {
    if (Admits(request, ids[i])) {
      ++admitted;
    } else {
      ids[i].row = DefaultOf(map, ids[i].key);
    }
  });
  return admitted;
}

void Evict(Request& request, int64_t lacking, int64_t touched) {
  Map& map = *request.map;
  const int64_t wanted =
      std::min(std::max(lacking, map.evicted_at_once), map.live - touched);
  const std::vector<int32_t> rows = id_map::LowestRows(map, wanted, request.now);
  for (int32_t row : rows) Note(request, row);
  id_map::Free(map, rows.data(), rows.size());
}

// Gives the lowest free rows to those that have none.
void Occupy(Request& request, std::vector<Unknown::Id>& ids) {
  Map& map = *request.map;
  auto prefetch = [&](int64_t i) {
    __builtin_prefetch(&map.index[id_map::SlotOf(map, ids[i].key)], 1);
  };
  id_map::Ahead(ids.size(), prefetch, [&](int64_t i) {
    if (ids[i].row >= 0) return;
    while (map.rows[map.lowest_free].count > 0) ++map.lowest_free;
    const int32_t row = map.lowest_free++;
    Note(request, row);
    const auto batch = static_cast<uint32_t>(map.batch);
    map.rows[row] = {ids[i].key, ids[i].times, batch, request.now};
    id_map::Insert(map, row);
    ++map.live;
    request.fresh[request.fresh_count++] = ids[i].row = row;
  });
}

void Translate(Request& request) {
  Map& map = *request.map;
  map.batch = map.batch % std::numeric_limits<uint32_t>::max() + 1;  // 0 is no batch
  const auto batch = static_cast<uint32_t>(map.batch);
  Unknown unknown(request.count);
  std::vector<int64_t> places;  // of ids without a row
  const Map fixed = map;        // in registers: what the loop writes can't change it
  FindAll(fixed, request.keys, request.count, [&](int64_t i, int32_t row) {
    if (row < 0) {
      places.push_back(i);
      request.rows[i] = unknown.Count(request.keys[i], fixed.sketch_salt);
      return;
    }
    Occupant& x = fixed.rows[row];
    if (x.batch != batch) {
      Note(request, row);
      x.batch = batch;
      x.last_seen = request.now;
    }
    x.count += x.count < std::numeric_limits<uint32_t>::max();
    request.rows[i] = row;
  });
  const int64_t touched = request.changed_count;
  const int64_t admitted = Admit(request, unknown.ids());
  request.needed = touched + admitted;
  const int64_t capacity = map.row_count - map.defaults;
  if (request.needed > capacity) return;
  const int64_t lacking = admitted - (capacity - map.live);
  if (lacking > 0) Evict(request, lacking, touched);
  Occupy(request, unknown.ids());
  for (int64_t i : places) request.rows[i] = unknown.ids()[request.rows[i]].row;
}

}  // namespace

// Translates one batch of each of several maps.
extern "C" void DlrmJaxTranslateIds(Request* requests, int64_t count, int64_t threads) {
  OnThreads(threads, count, [&](int64_t i) { Translate(requests[i]); });
}

// Finds the rows of ids, and defaults for those without.
extern "C" void DlrmJaxFindIds(const Map* map, const uint64_t* keys, int64_t count, int32_t* rows,
                               int64_t threads) {
  OnThreads(threads, (count + kIdsPerTask - 1) / kIdsPerTask, [&](int64_t task) {
    const int64_t begin = task * kIdsPerTask;
    const int64_t size = std::min(kIdsPerTask, count - begin);
    FindAll(*map, keys + begin, size, [&](int64_t i, int32_t row) {
      rows[begin + i] = row >= 0 ? row : DefaultOf(*map, keys[begin + i]);
    });
  });
}

// Makes the index of all rows that have ids.
extern "C" void DlrmJaxIndexIds(Map* map) {
  std::fill(map->index, map->index + map->slots, -1);
  auto prefetch = [&](int64_t row) {
    __builtin_prefetch(&map->index[id_map::SlotOf(*map, map->rows[row].key)], 1);
  };
  id_map::Ahead(map->row_count, prefetch, [&](int64_t row) {
    if (map->rows[row].count > 0) id_map::Insert(*map, row);
  });
}

// Frees rows that have ids.
extern "C" void DlrmJaxFreeRows(Map* map, const int32_t* rows, int64_t count) {
  id_map::Free(*map, rows, count);
}

// Takes changes back, the last one first.
extern "C" void DlrmJaxRestoreRows(Map* map, const int32_t* rows, const Occupant* before,
                                   int64_t count) {
  for (int64_t i = count - 1; i >= 0; --i) {
    Occupant& x = map->rows[rows[i]];
    const bool same = x.count > 0 && before[i].count > 0 && x.key == before[i].key;
    if (!same && x.count > 0) id_map::Erase(*map, rows[i]);
    x = before[i];
    x.batch = 0;  // batches count within one map, and the record may be of the one copied from
    if (!same && x.count > 0) id_map::Insert(*map, rows[i]);
  }
}
