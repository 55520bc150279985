#ifndef CARAVAN_COORDINATOR_OPENAI_BATCH_JSON_H_
#define CARAVAN_COORDINATOR_OPENAI_BATCH_JSON_H_

// Files and batches in the JSON of OpenAI's API. docs/api.md describes it.

#include "absl/status/statusor.h"
#include "coordinator/batch/batch.h"
#include "coordinator/batch/batch_book.h"
#include "nlohmann/json.hpp"

namespace caravan {

nlohmann::json FileJson(const FileObject& file);
nlohmann::json FilePageJson(const BatchBook::FilePage& page);
/// What the deletion of a file answers.
nlohmann::json DeletedFileJson(const std::string& id);

nlohmann::json BatchJson(const Batch& batch);
nlohmann::json BatchPageJson(const BatchBook::BatchPage& page);

/// A body of POST /v1/batches.
/// Errors: InvalidArgument, with the field's name as "param".
absl::StatusOr<BatchBook::NewBatch> ParseNewBatch(const nlohmann::json& body);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_BATCH_JSON_H_
