#ifndef CARAVAN_TESTS_WORKER_BORROWED_SOURCE_H_
#define CARAVAN_TESTS_WORKER_BORROWED_SOURCE_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/tensor_source.h"

namespace caravan {

/// A checkpoint or a pack that the fixture owns, as a source of one load.
class BorrowedSource : public TensorSource {
 public:
  explicit BorrowedSource(const TensorSource& source) : source_(source) {}
  const TensorInfo* Find(absl::string_view name) const override { return source_.Find(name); }
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override {
    return source_.ReadPart(name, offset, out);
  }
  const ExpertFile* FindExperts(int layer) const override { return source_.FindExperts(layer); }

 private:
  const TensorSource& source_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_BORROWED_SOURCE_H_
