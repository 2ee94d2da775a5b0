//! Methods of a Python class, a line each. What all of them would repeat is spelled here once.

/// Verbs of the store: `name(arguments; arrays) -> what Python gets = what the engine is asked`.
/// The arrays of each table are lent for the call, and the interpreter lock is released.
macro_rules! verbs {
    (impl $class:ty, $store:ident:
     $($verb:ident($($arg:ident: $of:ty),* $(; $lent:ident)?) -> $out:ty = $ask:expr;)*) => {
        #[pymethods]
        impl $class {$(
            fn $verb(
                &self,
                py: Python<'_>,
                $($arg: $of,)*
                $($lent: Vec<Batch<'_>>)?
            ) -> PyResult<$out> {
                $(let $lent = lend(&$lent)?;)?
                self.run(py, |$store| $ask).map(Into::into)
            }
        )*}
    };
}

/// Other methods: `name(&self, arguments) -> what Python gets = expression`.
macro_rules! methods {
    (impl $class:ty:
     $($(#[$how:meta])* $name:ident(& $($me:ident)+ $(, $arg:ident: $of:ty)*)
        $(-> $out:ty)? = $does:expr;)*) => {
        #[pymethods]
        impl $class {$(
            $(#[$how])*
            fn $name(& $($me)+ $(, $arg: $of)*) $(-> $out)? {
                $does
            }
        )*}
    };
}
