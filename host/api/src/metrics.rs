//! A metric in one line: its field, its names, its kind and its help, from which come the struct that carries the readings and the
//! samples that `/metrics` writes.
//!
//! **Invariant:** pure; nothing here counts anything.

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Kind {
    /// Prometheus' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A reading of one metric without labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// What was read.
    pub value: u64,
}

/// Makes a struct of readings, and `samples`: `field: type = Kind "name" "another_name", "Help.";`, where the help is the field's
/// documentation too.
#[macro_export]
macro_rules! metrics {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $metrics:ident {
            $($field:ident: $of:ty = $kind:ident $($name:literal)+, $help:literal;)*
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $metrics {
            $(#[doc = $help] pub $field: $of,)*
        }

        impl $metrics {
            /// Every metric with its reading.
            pub fn samples(&self) -> Vec<$crate::metrics::Sample> {
                vec![$($($crate::metrics::Sample {
                    name: $name,
                    kind: $crate::metrics::Kind::$kind,
                    help: $help,
                    value: u64::from(self.$field),
                },)+)*]
            }
        }
    };
}
