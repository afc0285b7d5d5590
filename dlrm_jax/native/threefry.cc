// Random bits as a custom call, for `threefry.py`.

#include "threefry.h"

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

using Array = ffi::Buffer<ffi::U32>;

// The two words of random bits of the counters `first`, `first` + 1, ...
ffi::Error Bits(ffi::ThreadPool pool, Array key_arg, Array first_arg, ffi::Result<Array> high,
                ffi::Result<Array> low) {
  const Key key{key_arg.typed_data()[0], key_arg.typed_data()[1]};
  const uint32_t first = *first_arg.typed_data();
  const int64_t count = high->element_count();
  constexpr int64_t kOfTask = 1 << 16;
  Parallel(pool, (count + kOfTask - 1) / kOfTask, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kOfTask);
    for (int64_t i = task * kOfTask; i < end; i += kLanes) {
      Words x, y;
      Threefry(key, first + static_cast<uint32_t>(i), x, y);
      const size_t bytes = sizeof(uint32_t) * std::min<int64_t>(kLanes, end - i);
      std::memcpy(high->typed_data() + i, &x, bytes);
      std::memcpy(low->typed_data() + i, &y, bytes);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    DlrmJaxThreefry, Bits,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>().Ret<Array>());
