// The state of a map from ids to rows, and its index; `dlrm_jax.dynamic_ids` says what it is for.

#pragma once

#include <cstdint>

namespace id_map {

// As `dynamic_ids.occupants` describes it to NumPy; count 0 is a free row.
struct Occupant {
  uint64_t key;
  uint32_t count, batch;
  int64_t last_seen;
};

enum Eviction : int64_t { kLru, kLfu, kDistanceLfu };

// As `native.id_map` describes it to NumPy.
struct Map {
  Occupant* rows;
  int32_t* index;  // rows by the hash of their ids, -1 for none: linear probing
  uint8_t* sketch;
  int64_t row_count, slots, blocks, defaults;
  int64_t live, lowest_free, additions, batch;  // these change
  int64_t admit_count, eviction, evicted_at_once;
  double admit_probability;
  uint64_t slot_salt, sketch_salt, default_salt, draw_salt;
};

// The functions of `dynamic_ids.id_hashes`.
inline uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}
inline int64_t Scaled(uint64_t hashed, int64_t count) { return (hashed >> 32) * count >> 32; }

inline int64_t SlotOf(const Map& map, uint64_t key) {
  return Scaled(Mix(key ^ map.slot_salt), map.slots);
}
inline int64_t Next(const Map& map, int64_t slot) { return slot + 1 == map.slots ? 0 : slot + 1; }

inline int32_t DefaultOf(const Map& map, uint64_t key) {
  return map.defaults == 1 ? 0 : Scaled(Mix(key ^ map.default_salt), map.defaults);
}

// The row of an id, looked for from `slot` on; -1 if there is none.
inline int32_t Find(const Map& map, uint64_t key, int64_t slot) {
  for (int32_t row; (row = map.index[slot]) >= 0; slot = Next(map, slot)) {
    if (map.rows[row].key == key) return row;
  }
  return -1;
}

// Adds a row to the index, which has none of this id.
inline void Insert(const Map& map, int32_t row) {
  int64_t slot = SlotOf(map, map.rows[row].key);
  while (map.index[slot] >= 0) slot = Next(map, slot);
  map.index[slot] = row;
}

// Removes a row from the index and moves later ones up, so that searches may end at a hole.
inline void Erase(const Map& map, int32_t row) {
  auto distance = [&](int64_t from, int64_t to) { return to - from + (to < from ? map.slots : 0); };
  int64_t hole = SlotOf(map, map.rows[row].key);
  while (map.index[hole] != row) hole = Next(map, hole);
  int64_t slot = hole;
  for (int32_t other; (other = map.index[slot = Next(map, slot)]) >= 0;) {
    if (distance(SlotOf(map, map.rows[other].key), slot) < distance(hole, slot)) continue;
    map.index[hole] = other;
    hole = slot;
  }
  map.index[hole] = -1;
}

// Calls work(i) for i from 0 to count - 1, and prepare(i) some calls before, to prefetch.
template <typename Prepare, typename Work>
void Ahead(int64_t count, const Prepare& prepare, const Work& work) {
  constexpr int64_t kAhead = 16;
  for (int64_t i = 0; i < count && i < kAhead; ++i) prepare(i);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prepare(i + kAhead);
    work(i);
  }
}

// Frees rows that have ids.
inline void Free(Map& map, const int32_t* rows, int64_t count) {
  auto prefetch = [&](int64_t i) {
    __builtin_prefetch(&map.index[SlotOf(map, map.rows[rows[i]].key)], 1);
  };
  Ahead(count, prefetch, [&](int64_t i) {
    Erase(map, rows[i]);
    map.rows[rows[i]] = Occupant{};
    if (rows[i] < map.lowest_free) map.lowest_free = rows[i];
  });
  map.live -= count;
}

}  // namespace id_map
