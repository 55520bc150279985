#ifndef CARAVAN_COORDINATOR_OPENAI_GENERATION_H_
#define CARAVAN_COORDINATOR_OPENAI_GENERATION_H_

// One request to generate, apart from HTTP: the jobs that it takes, and the reply made of what they
// yield. Streams and batches both run on it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/job.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/openai/prompt_echo.h"
#include "coordinator/openai/reply_assembler.h"
#include "coordinator/openai/response_json.h"
#include "coordinator/random_id.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Not thread-safe. Borrows the model's text side.
class Generation {
 public:
  /// Reads a request's body. From `draw_seed` comes what the request leaves open, the reply's id
  /// and seeds: with the same one a request gives the same reply. Errors: as
  /// ParseGenerationRequest.
  static absl::StatusOr<std::unique_ptr<Generation>> Create(GenerationApi api,
                                                            const nlohmann::json& body,
                                                            const ServedModel& model,
                                                            uint64_t draw_seed = RandomNumber());

  bool streams() const { return request_.stream; }

  /// A job for each choice; those of one prompt stand together. Call it once.
  std::vector<JobSpec> TakeSpecs();

  /// Takes in what the job of `choice` grew by. True: it needs no more of that job, which may be
  /// cancelled. With streams(), TakeChunks has what became known.
  bool Push(size_t choice, const JobUpdate& update);

  /// Every choice has ended.
  bool done() const { return num_done_ == choices_.size(); }

  /// The next chunks of the stream; once done(), the last with the usage if that was asked for.
  /// REQUIRES: streams().
  std::vector<nlohmann::json> TakeChunks();

  /// The body of the whole reply. REQUIRES: done() and !streams().
  nlohmann::json Response() const;

 private:
  struct Choice {
    ReplyAssembler assembler;
    std::optional<PromptEcho> echo;
    bool first = true;  // nothing was said of it yet
    int64_t cached_tokens = 0;
    bool done = false;
  };

  Generation(GenerationRequest request, const ServedModel& model, uint64_t draw_seed);
  void Grow(size_t choice, ReplyChoice growth);
  ReplyUsage Usage() const;

  GenerationRequest request_;
  std::mt19937_64 draws_;
  ReplyFrame frame_;
  std::vector<int32_t> stop_token_ids_;
  std::vector<Choice> choices_;
  size_t num_done_ = 0;
  std::vector<ReplyChoice> replies_;    // without streams()
  std::vector<nlohmann::json> chunks_;  // with it
  bool usage_told_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_GENERATION_H_
