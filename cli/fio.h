#ifndef CARAVAN_CLI_FIO_H_
#define CARAVAN_CLI_FIO_H_

// What fio reads of a file, as a measure for our own reads. fio is Debian's package of that name.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/io/direct_file.h"
#include "base/io/read_rate.h"

namespace caravan {

/// Errors: NotFound - there is no fio on PATH.
absl::Status CheckFio();

/// GB/s of the same load as MeasureReadRate's, as good as fio can: by io_uring, with registered
/// files and buffers. large_pages: its memory is in large pages, as ours is. `report` is a path for
/// files of its own, which are gone afterwards.
/// REQUIRES: CheckFio() is OK.
/// Errors: Internal - fio failed: with what it said; as Subprocess::Start.
absl::StatusOr<double> MeasureFioRate(const DirectFile& file, const ReadLoad& load,
                                      bool large_pages, const std::string& report);

}  // namespace caravan

#endif  // CARAVAN_CLI_FIO_H_
