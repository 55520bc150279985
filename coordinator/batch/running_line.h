#ifndef CARAVAN_COORDINATOR_BATCH_RUNNING_LINE_H_
#define CARAVAN_COORDINATOR_BATCH_RUNNING_LINE_H_

// A batch's line while it runs: its generation, what of it is on disk, and the jobs that it takes,
// each of which can be begun again from the tokens that it had.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/job.h"
#include "coordinator/openai/generation.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/store/job_store.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Not thread-safe. Borrows the model's text side.
class RunningLine {
 public:
  /// `growth` is what JobStore::ReadGrowth has of it.
  /// Errors: as ParseGenerationRequest; InvalidArgument - it asks for a stream.
  static absl::StatusOr<std::unique_ptr<RunningLine>> Create(LineRef where, const BatchLine& line,
                                                             GenerationApi api,
                                                             const ServedModel& model,
                                                             absl::Span<const LineGrowth> growth);

  LineRef where() const { return where_; }
  const std::string& custom_id() const { return custom_id_; }
  size_t num_choices() const { return choices_.size(); }
  bool done() const { return generation_->done(); }
  bool done(size_t choice) const { return choices_[choice].done; }

  /// Its jobs can go on from tokens. Where not, none of its growth is kept: it starts over.
  bool resumable() const { return resumable_; }

  /// The job that generates what is missing of the choice. REQUIRES: !done(choice).
  JobSpec NextJob(size_t choice) const;

  /// Takes in what the job of `choice` grew by. True: it needs no more of that job.
  bool Push(size_t choice, const JobUpdate& update);

  /// What was pushed since it was last recorded is added to `growth`.
  void AddGrowth(std::vector<LineGrowth>& growth) const;
  /// What AddGrowth gave last is on disk. REQUIRES: no Push since.
  void MarkRecorded();

  /// The body of the reply. REQUIRES: done().
  nlohmann::json Response() const { return generation_->Response(); }

 private:
  struct Choice {
    JobSpec spec;  // with the whole reply so far
    bool done = false;
    int64_t recorded_tokens = 0;  // of the reply
    v1::StoredGrowth unrecorded;
    bool has_unrecorded = false;
  };

  RunningLine(LineRef where, std::string custom_id, std::unique_ptr<Generation> generation);
  /// Push without recording.
  void TakeIn(size_t choice, const JobUpdate& update);

  const LineRef where_;
  const std::string custom_id_;
  const std::unique_ptr<Generation> generation_;
  std::vector<Choice> choices_;
  bool resumable_ = true;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_RUNNING_LINE_H_
