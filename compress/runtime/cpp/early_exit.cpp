// The one source that is compiled along. Its parts are apart for those who read them.
#include "early_exit.hpp"

#include "detail/bundle.hpp"
#include "detail/first_call.hpp"
#include "detail/dispatcher.hpp"
