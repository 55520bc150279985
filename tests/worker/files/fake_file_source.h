#ifndef CARAVAN_TESTS_WORKER_FILES_FAKE_FILE_SOURCE_H_
#define CARAVAN_TESTS_WORKER_FILES_FAKE_FILE_SOURCE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "tests/worker/files/made_file.h"
#include "worker/files/file_source.h"

namespace caravan {

/// Has what it was given. What a test's `on_read` does to a read comes first: it may change what
/// is sent, or fail.
class FakeFileSource : public FileSource {
 public:
  using OnRead = std::function<absl::Status(const std::string& file, int64_t offset,
                                            std::string& sent, const std::stop_token& stop)>;

  /// May keep back the end of what is sent, or all; returns how long the source wants to be left
  /// alone then.
  using Busy = std::function<absl::Duration(std::string& sent)>;

  explicit FakeFileSource(std::string name) : name_(std::move(name)) {}

  void Give(const MadeFile& file) { files_[file.packed.name] = file.bytes; }
  void set_on_read(OnRead on_read) { on_read_ = std::move(on_read); }
  void set_busy(Busy busy) { busy_ = std::move(busy); }
  void set_on_read_done(std::function<void()> done) { on_read_done_ = std::move(done); }
  void set_before_list(std::function<void()> before) { before_list_ = std::move(before); }
  void set_list_error(absl::Status error) { list_error_ = std::move(error); }
  int64_t bytes_asked() const { return bytes_asked_; }
  int lists() const { return lists_; }

  const std::string& name() const override { return name_; }
  absl::StatusOr<std::vector<OfferedFile>> List(const std::stop_token&) override {
    ++lists_;
    if (before_list_ != nullptr) before_list_();
    if (!list_error_.ok()) return list_error_;
    std::vector<OfferedFile> offered;
    for (const auto& [name, bytes] : files_) {
      offered.push_back({name, static_cast<int64_t>(bytes.size())});
    }
    return offered;
  }
  absl::StatusOr<absl::Duration> Read(const std::string& file, int64_t offset, int64_t size,
                                      FileSink sink, const std::stop_token& stop) override {
    bytes_asked_ += size;
    std::string sent =
        files_.at(file).substr(static_cast<size_t>(offset), static_cast<size_t>(size));
    if (on_read_ != nullptr) {
      if (absl::Status status = on_read_(file, offset, sent, stop); !status.ok()) return status;
    }
    const auto done = std::unique_ptr<void, std::function<void(void*)>>(this, [this](void*) {
      if (on_read_done_ != nullptr) on_read_done_();
    });
    const absl::Duration wait = busy_ == nullptr ? absl::ZeroDuration() : busy_(sent);
    // Parts that end anywhere, as nobody promises where they do.
    constexpr size_t kPart = 100'003;
    for (size_t at = 0; at < sent.size(); at += kPart) {
      const absl::string_view part = absl::string_view(sent).substr(at, kPart);
      const absl::Status kept =
          sink(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(part.data()), part.size()));
      if (!kept.ok()) return kept;
    }
    return wait;
  }

 private:
  const std::string name_;
  std::map<std::string, std::string> files_;
  OnRead on_read_;
  Busy busy_;
  std::function<void()> on_read_done_;
  std::function<void()> before_list_;
  absl::Status list_error_;
  std::atomic<int64_t> bytes_asked_ = 0;
  std::atomic<int> lists_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_FILES_FAKE_FILE_SOURCE_H_
