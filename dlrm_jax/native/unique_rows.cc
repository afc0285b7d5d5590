// The different rows among those that a device's samples read, by partner: XLA's CPU backend sorts
// slowly.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "radix_sort.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Numbers = ffi::Buffer<ffi::S32>;

// Occurrence i has the partner partners[i], from `count` on none, and the number numbers[i], from 0
// to less than `none`.
ffi::Error UniqueRows(Numbers partners, Numbers numbers, ffi::Result<Numbers> rows,
                      ffi::Result<Numbers> starts, ffi::Result<Numbers> places, int64_t none) {
  const int64_t size = partners.element_count(), count = starts->element_count() - 1;
  const int32_t* const partner = partners.typed_data();
  int32_t* const found = rows->typed_data();
  int32_t* const begin = starts->typed_data();
  int32_t* const place = places->typed_data();
  // Kept from call to call: fresh memory would have to be mapped and zeroed each time.
  static thread_local std::vector<uint64_t> keys, other;
  static thread_local std::vector<int64_t> ends;
  keys.clear();
  ends.assign(count + 1, 0);
  for (int64_t i = 0; i < size; ++i) {
    place[i] = size;
    if (static_cast<uint32_t>(partner[i]) >= count) continue;
    keys.push_back(static_cast<uint64_t>(numbers.typed_data()[i]) << 32 | i);
    ++ends[partner[i] + 1];
  }
  RadixSort(keys, other, none);
  for (int64_t k = 0; k < count; ++k) ends[k + 1] += ends[k];
  for (uint64_t key : keys) other[ends[partner[static_cast<uint32_t>(key)]]++] = key;
  int32_t different = 0;
  for (int64_t k = 0, i = 0; k < count; ++k) {
    begin[k] = different;
    for (const int64_t first = i; i < ends[k]; ++i) {
      if (i == first || other[i] >> 32 != other[i - 1] >> 32) found[different++] = other[i] >> 32;
      place[static_cast<uint32_t>(other[i])] = different - 1;
    }
  }
  begin[count] = different;
  std::fill(found + different, found + size, static_cast<int32_t>(none));
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxUniqueRows, UniqueRows,
                              ffi::Ffi::Bind()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Numbers>()
                                  .Attr<int64_t>("none"));
