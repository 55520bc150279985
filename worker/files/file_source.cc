#include "worker/files/file_source.h"

#include "base/status_macros.h"
#include "base/stoppable_sleep.h"

namespace caravan {

absl::Status ReadAll(FileSource& source, const std::string& file, int64_t offset, int64_t size,
                     FileSink sink, const std::stop_token& stop) {
  int64_t done = 0;
  const auto count = [&](absl::Span<const std::byte> bytes) {
    done += static_cast<int64_t>(bytes.size());
    return sink(bytes);
  };
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const absl::Duration wait,
                             source.Read(file, offset + done, size - done, count, stop));
    if (wait <= absl::ZeroDuration()) return absl::OkStatus();
    if (!SleepUnlessStopped(wait, stop)) return absl::CancelledError("stopped");
  }
}

}  // namespace caravan
