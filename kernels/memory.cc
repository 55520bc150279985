#include "kernels/memory.h"

#include <cstring>

#include "base/buffer.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

class HostMemoryImpl : public Memory {
 public:
  bool is_host() const override { return true; }

  absl::StatusOr<Array> Allocate(int64_t bytes, Use use) override {
    CARAVAN_ASSIGN_OR_RETURN(Buffer buffer, Buffer::Allocate(bytes));
    if (use == Use::kWhole) buffer.PreferLargePages();
    std::byte* const data = buffer.data();
    return Array(std::move(buffer), data, bytes);
  }

  absl::Status CopyIn(const void* host, int64_t bytes, void* to) override {
    return Copy(host, bytes, to);
  }
  absl::Status CopyOut(const void* from, int64_t bytes, void* host) override {
    return Copy(from, bytes, host);
  }
  absl::Status Copy(const void* from, int64_t bytes, void* to) override {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status Clear(void* to, int64_t bytes) override {
    if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<CopyQueue>> MakeCopyQueue() override {
    return absl::InternalError("nothing is copied to where it already is");
  }
};

}  // namespace

Memory& HostMemory() {
  static HostMemoryImpl memory;
  return memory;
}

}  // namespace caravan
