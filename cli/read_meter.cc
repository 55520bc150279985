#include "cli/read_meter.h"

#include <utility>

#include "base/check.h"

namespace caravan {
namespace {

class MeteredQueue : public ReadQueue {
 public:
  MeteredQueue(std::unique_ptr<ReadQueue> queue, ReadMeter& meter)
      : meter_(meter), queue_(std::move(queue)) {}

  absl::string_view Name() const override { return queue_->Name(); }

  Id Submit(const FileRead& read, ReadPriority priority, Done done) override {
    meter_.Begin();
    return queue_->Submit(read, priority,
                          [this, bytes = static_cast<int64_t>(read.out.size()),
                           done = std::move(done)](const absl::Status& status) {
                            // First: whoever is told may look at the meter.
                            meter_.End(status.ok() ? bytes : 0);
                            done(status);
                          });
  }

  void Promote(Id id) override { queue_->Promote(id); }

  bool Cancel(Id id) override {
    const bool taken_back = queue_->Cancel(id);
    if (taken_back) meter_.End(0);
    return taken_back;
  }

  Counters counters() const override { return queue_->counters(); }

 private:
  ReadMeter& meter_;
  const std::unique_ptr<ReadQueue> queue_;
};

}  // namespace

void ReadMeter::Begin() {
  if (sum_ != nullptr) sum_->Begin();
  const absl::Duration now = clock_.Now();
  MutexLock lock(&mu_);
  if (under_way_++ == 0) busy_from_ = now;
}

void ReadMeter::End(int64_t read_bytes) {
  if (sum_ != nullptr) sum_->End(read_bytes);
  const absl::Duration now = clock_.Now();
  MutexLock lock(&mu_);
  CARAVAN_CHECK(under_way_ > 0);
  counters_.read_bytes += read_bytes;
  if (--under_way_ > 0) return;
  counters_.busy += now - busy_from_;
  idle_.SignalAll();
}

ReadMeter::Counters ReadMeter::counters() const {
  const absl::Duration now = clock_.Now();
  MutexLock lock(&mu_);
  Counters counters = counters_;
  if (under_way_ > 0) counters.busy += now - busy_from_;
  return counters;
}

void ReadMeter::WaitUntilIdle() {
  MutexLock lock(&mu_);
  while (under_way_ > 0) idle_.Wait(&mu_);
}

std::unique_ptr<ReadQueue> MakeMeteredQueue(std::unique_ptr<ReadQueue> queue, ReadMeter* meter) {
  return std::make_unique<MeteredQueue>(std::move(queue), *meter);
}

}  // namespace caravan
